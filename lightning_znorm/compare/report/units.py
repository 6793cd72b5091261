"""The format of a metric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report.formatting import align


@dataclass(frozen=True)
class Unit:
    """The format of a metric: shares of 1, of which more is better, in percent, others unchanged."""

    is_share: bool

    def format(self, value: float) -> str:
        """Format a value."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f}" if self.is_share else f"{value:.4g}"

    def format_column(self, values: Sequence[float]) -> list[str]:
        """Format values with the same number of decimals."""
        return [self.format(value) for value in values] if self.is_share else align(values)

    def format_interval(self, low: float, high: float) -> str:
        """Format an interval, that of a share between 0 and 1; empty if there is none."""
        if math.isnan(low):
            return ""
        if self.is_share:
            low, high = max(low, 0.0), min(high, 1.0)
        return f"{self.format(low)} to {self.format(high)}"

    def format_difference_interval(self, low: float, high: float) -> str:
        """Format the interval of a difference, empty if there is none."""
        if math.isnan(low):
            return ""
        return f"{100 * low:.1f} to {100 * high:.1f}" if self.is_share else f"{low:.3g} to {high:.3g}"

    def format_difference(self, value: float) -> str:
        """Format the size of a difference."""
        return f"{abs(100 * value):.1f} points" if self.is_share else f"{abs(value):.3g}"

    def format_signed(self, value: float) -> str:
        """Format a difference with its sign, that of a share in points."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:+.1f}" if self.is_share else f"{value:+.3g}"

    @property
    def heading(self) -> str:
        """Suffix of the metric's name."""
        return " (%)" if self.is_share else ""


def choose_unit(question: Question, runs: pd.DataFrame) -> Unit:
    """Treat a metric as a share if it is maximized and all its values are between 0 and 1."""
    values = pd.concat([runs["test"], runs["validation"]]).dropna()
    return Unit(question.mode == "max" and bool(len(values)) and bool(values.between(0, 1).all()))
