"""The pictures of a report, drawn from its findings."""

from collections.abc import Callable, Iterator
from functools import partial

from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.run import format_values, shorten_keys
from lightning_znorm.compare.question.search import Crossed, Search
from lightning_znorm.compare.report import plots
from lightning_znorm.compare.report.findings import Findings


def draw_pictures(question: Question, findings: Findings) -> Iterator[tuple[str, str, Callable[[], str | None]]]:
    """Yield name, caption, and a function that draws it, of each picture."""
    labels, unit, mode = question.labels, findings.unit, question.mode
    intervals = findings.summary.rename(
        columns={"difference": "mean", "difference_low": "low", "difference_high": "high"}
    )
    intervals = intervals.loc[
        [label for label in labels if label != question.baseline], ["mean", "low", "high", "answer"]
    ]
    yield (
        "differences",
        "Differences to the baseline: mean, 95% interval, and a dot per pair",
        partial(
            plots.draw_differences,
            *(findings.differences, intervals, labels, question.baseline, question.test_monitor, mode, unit),
            question.margin,
        ),
    )
    if len(findings.trials):
        key = _find_axis(question)
        column = findings.trials.columns[-len(question.keys) :][list(question.keys).index(key)]
        others = [name for name in question.keys if name != key]
        trials = findings.trials.assign(
            x=findings.trials[column],
            panel=[
                format_values({name: row[name] for name in others if name in row})
                for _, row in findings.trials.iterrows()
            ],
        )
        for number, (panel, group) in enumerate(trials.groupby("panel", sort=False), start=1):
            yield (
                "sweep" if number == 1 else f"sweep-{number}",
                f"Selection: {question.monitor} against {shorten_keys([key])[0]}" + (f" ({panel})" if panel else ""),
                partial(plots.draw_sweep, group, labels, shorten_keys([key])[0], question.monitor, mode, unit),
            )
    for name, caption, frame in (
        ("curves", f"Confirmation: {question.monitor} while training, mean and range of the seeds", findings.curves),
        ("losses", "Confirmation: training loss, mean and range of the seeds", findings.losses),
    ):
        yield name, caption, partial(_draw_curves, name, frame, question, findings)


def _find_axis(question: Question) -> str:
    """Return the key that is searched, or else the first one."""
    for candidates in question.design.candidates.values():
        search = candidates.searches[0] if isinstance(candidates, Crossed) else candidates
        if isinstance(search, Search):
            return search.key
    return question.keys[0]


def _draw_curves(name: str, frame: object, question: Question, findings: Findings) -> str | None:
    return None
