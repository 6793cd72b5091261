"""What the tests of comparisons share."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.__main__ import main
from lightning_znorm.compare.question.arguments import parse_question
from lightning_znorm.compare.question.run import format_values
from lightning_znorm.compare.report.findings import make_findings
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule

ROOT = Path(__file__).parents[2]
TINY, ODD = "tests.compare.tiny", "tests.compare.odd"
SWEEP, MIDDLE = {"lr": [0.1, 0.01, 0.001]}, {"lr": 0.01}  # a setting that is no end
CLEAR = {"none": [0.80, 0.82, 0.81, 0.80, 0.79, 0.83], "znorm": [0.85, 0.88, 0.86, 0.86, 0.84, 0.90]}
OLD, NEW = "1" * 40, "2" * 40  # commits
FLAGS = [
    f"--model={TINY}.TinyModel",
    f"--data={TINY}.TinyData",
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "--compare.monitor=val_acc",
    "--compare.methods=none,znorm",
    "--compare.sweep=null",
    "--compare.confirm=6",
    "--compare.jobs=2",
    "--compare.out=out",
]
QUICK = {"max_epochs": 2, "accelerator": "cpu"}
ALONE, TWO = ["--compare.methods=none", "--compare.confirm=1"], "--compare.confirm=2"  # where no pair is needed


def compare(*flags):
    """Run the command in this process, and return its status."""
    try:
        main(["compare", *FLAGS, *flags])
    except SystemExit as error:
        return error.code
    return 0


def report(*args):
    """Run `lightning-znorm report` in this process, and return its status."""
    try:
        main(["report", *args])
    except SystemExit as error:
        return error.code
    return 0


def refusal(capsys, *flags, command=compare):
    """The last line of an error, with its status checked."""
    assert command(*flags) == 2
    return capsys.readouterr().err.strip()


def draft(**changes):
    """What a user asks, with three selection seeds 0 to 2."""
    asked = {"methods": "none,clip,znorm", "sweep": SWEEP, "monitor": "val_acc", "configured": {"lr": None}}
    return parse_question(**{**asked, **changes})


def question(**changes):
    return draft(**changes).question


def result(method, seed, setting=None, *, val=0.5, test=0.5, curve=None, status="finished", **changes):
    """What a run leaves behind in its file."""
    curve = [val] if curve is None else curve
    setting = setting or {}
    return {
        "schema": 2,
        "name": ", ".join(filter(None, [method, format_values(setting), f"seed {seed}"])),
        "method": method,
        "identity": {},
        "setting": setting,
        "seed": seed,
        "status": status,
        "error": None,
        "versions": {"torch": "2", "lightning": "2"},
        "curve": [{"epoch": e, "step": e, "metrics": {"val_acc": v}} for e, v in enumerate(curve, start=1)],
        "test": {"test_acc": test},
        "train_loss": [1.0, 0.5],
        "weights_hash": f"w{seed}",
        "batches_hash": f"b{seed}",
        "seconds": {"all": 2.0, "step": 0.01},
        "steps": 10,
        "ended": "max_epochs",
        "stopped_early": False,
        "epochs": 2,
        "device": "cpu",
        "threads": 1,
        **changes,
    }


def find(asked, contents, planned=None):
    """The findings of those results, from their files, that the question asks for."""
    by_name = {content["name"]: content for content in contents}
    assert len(by_name) == len(contents)
    results = Schedule(asked).load(lambda run: RunResult.from_json(run, by_name.get(str(run))))
    return make_findings(asked, results, planned)


def selected(findings):
    """The selected setting of each method, as the user reads it."""
    return findings.summary["setting"].to_dict()


def selection(asked, scores, **changes):
    """Results of the selection, as far as it asks for them: the validation metric by method and setting."""
    contents = {}

    def read(run):
        if not asked.is_selection(run.seed):
            return None
        value = scores(run) if callable(scores) else scores[run.method.label]
        content = result(run.method.label, run.seed, dict(run.setting.values), val=value, test=0.123, **changes)
        contents[content["name"]] = content
        return RunResult.from_json(run, content)

    Schedule(asked).load(read)
    return list(contents.values())


def confirmation(asked, tests, setting=None, **changes):
    """Results of the confirmation at a setting: test metrics of each method in the order of the fresh seeds."""
    return [
        result(method, seed, setting, val=value, test=value, **changes)
        for method, values in tests.items()
        for seed, value in zip(asked.design.fresh_seeds, values, strict=False)
    ]


def best_at(lr):
    """A score that is highest at a rate."""
    return lambda run: 0.9 - abs(math.log10(run.setting.values["lr"] / lr)) / 10 + run.seed / 1000


def answered(tests, *, margin=None, mode=None, **changes):
    """The question and its findings where all methods are confirmed at a setting in the middle of the sweep."""
    pairs = len(next(iter(tests.values())))
    asked = question(methods=list(tests), confirm=pairs, margin=margin, mode=mode, **changes)
    sign = -1 if mode == "min" else 1
    results = selection(asked, lambda run: sign * best_at(0.01)(run))
    return asked, find(asked, results + confirmation(asked, tests, MIDDLE))


def read_results(folder):
    """All results in a folder, by the name of the run."""
    return {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("runs/*/result.json")}


def stamps(folder="out"):
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("runs/*/result.json")}


def table_of(frame):
    """A summary without what depends on the load of the machine."""
    return frame[[name for name in frame.columns if "seconds" not in name]]


def read_table():
    return table_of(pd.read_csv("out/summary.csv"))


def wait_for(process, text):
    """Read the display until a line has the text."""
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"{text!r} did not come")


def figures(results):
    """What must be the same however often the comparison was interrupted."""
    same = ("curve", "test", "weights_hash", "batches_hash", "status", "train_loss")
    return {name: {key: result[key] for key in same} for name, result in results.items()}


def approx(value):
    return pytest.approx(value, rel=1e-9)
