"""The pictures of a report, drawn from its findings."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from lightning_znorm.compare.question.directions import Mode
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.run import format_values, shorten_keys
from lightning_znorm.compare.report import pictures
from lightning_znorm.compare.report.findings import Findings
from lightning_znorm.compare.report.tables import list_key_columns
from lightning_znorm.compare.report.units import Unit


class Illustration(NamedTuple):
    """A picture to be drawn."""

    name: str
    caption: str
    draw: Callable[[], str | None]


def list_illustrations(question: Question, findings: Findings) -> Iterator[Illustration]:
    """Yield the pictures of a report."""
    labels, baseline, mode = question.labels, question.baseline, question.mode
    columns = {"difference": "mean", "difference_low": "low", "difference_high": "high"}
    intervals = findings.summary.rename(columns=columns)[[*columns.values(), "answer"]]
    names = (question.test_monitor, mode, findings.unit)
    yield Illustration(
        "differences",
        f"Differences to {baseline}: mean, 95% interval, and a dot per pair",
        partial(pictures.draw_differences, findings.differences, intervals, labels, baseline, *names, question.margin),
    )
    yield from _list_sweeps(question, findings)
    options = (mode, findings.unit, findings.axis)
    yield Illustration(
        "curves",
        "Confirmation: mean and range of the seeds on the validation split",
        partial(pictures.draw_curves, findings.curves, labels, baseline, question.monitor, *options),
    )
    minimized: Mode = "min"
    loss = ("training loss", minimized, Unit(is_share=False), "epoch")
    yield Illustration(
        "losses",
        "Confirmation: mean and range of the training loss",
        partial(pictures.draw_curves, findings.losses, labels, baseline, *loss, name="losses"),
    )


def _list_sweeps(question: Question, findings: Findings) -> Iterator[Illustration]:
    """Yield a picture for each combination of the keys that are not on its axis."""
    if findings.trials.empty:
        return
    keys = dict(zip(question.keys, list_key_columns(findings.trials), strict=True))
    axis = question.keys[0] if question.search is None else question.search.key
    others = [key for key in keys if key != axis]
    panels = [
        format_values({key: row[keys[key]] for key in others}) for row in findings.trials.to_dict(orient="records")
    ]
    trials = findings.trials.assign(x=findings.trials[keys[axis]], panel=panels)
    (key,) = shorten_keys([axis])
    for number, (panel, group) in enumerate(trials.groupby("panel", sort=False), start=1):
        name = "sweep" if number == 1 else f"sweep-{number}"
        suffix = f" ({panel!s})" if panel else ""
        yield Illustration(
            name,
            f"Selection: {question.monitor} against {key}{suffix}; ringed: selected",
            partial(
                pictures.draw_sweep,
                *(group, question.labels, question.baseline, key, question.monitor, question.mode, findings.unit),
                name=name,
            ),
        )
