"""What the tests of comparisons share."""

import json
from pathlib import Path

import pytest

from lightning_znorm.__main__ import main
from lightning_znorm.compare.question.plan import Run, Setting
from lightning_znorm.compare.question.question import parse_question
from lightning_znorm.compare.report.findings import make_findings
from lightning_znorm.compare.report.tables import label_settings
from lightning_znorm.compare.runs.result import RunResult

ROOT = Path(__file__).parents[2]
TINY = "tests.compare.tiny"
SWEEP, MIDDLE = {"lr": [0.1, 0.01, 0.001]}, {"lr": 0.01}  # a setting that is no end
FLAGS = [
    f"--model={TINY}.TinyModel",
    f"--data={TINY}.TinyData",
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "--compare.monitor=val_acc",
    "--compare.methods=none,znorm",
    "--compare.seeds=2",
    "--compare.jobs=2",
    "--compare.out=out",
]


def compare(*flags):
    """Run the command in this process, and return its status."""
    try:
        main(["compare", *FLAGS, *flags])
    except SystemExit as error:
        return error.code
    return 0


def refusal(capsys, *flags):
    """The last line of an error, with its status checked."""
    assert compare(*flags) == 2
    return capsys.readouterr().err.strip()


def question(**changes):
    asked = {
        "methods": "none,clip,znorm",
        "sweep": {"lr": [0.1, 0.01]},
        "seeds": 3,
        "monitor": "val_acc",
        "mode": None,
        "test_monitor": None,
        "baseline": None,
    }
    return parse_question(**{**asked, **changes})


def result(method, seed, setting=None, *, val=0.5, test=0.5, curve=None, status="finished", **changes):
    """What a run leaves behind in its file."""
    curve = [val] if curve is None else curve
    return {
        "schema": 1,
        "method": method,
        "identity": {},
        "setting": setting or {},
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
        **changes,
    }


def read(asked, content):
    """A result from its file."""
    (method,) = [method for method in asked.methods if method.label == content["method"]]
    known = [setting for setting in asked.settings if setting.values == content["setting"]]
    setting = known[0] if known else Setting(0, content["setting"])
    return RunResult.from_json(Run(method, setting, content["seed"]), content)


def find(asked, contents):
    """The findings of results from their files."""
    return make_findings(asked, [read(asked, content) for content in contents])


def selected(asked, findings):
    """The selected setting of each method, as the user reads it."""
    return label_settings(asked, findings.summary)["setting"].to_dict()


def results_of(tests, **changes):
    """Results at one setting: test metrics of each method by seed."""
    return [
        result(method, seed, val=value, test=value, **changes)
        for method, values in tests.items()
        for seed, value in enumerate(values)
    ]


def read_results(folder):
    """All results in a folder, by the name of the run."""
    return {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("runs/*/result.json")}


def figures(results):
    """What must be the same however often the comparison was interrupted."""
    same = ("curve", "test", "weights_hash", "batches_hash", "status", "train_loss")
    return {name: {key: result[key] for key in same} for name, result in results.items()}


def approx(value):
    return pytest.approx(value, rel=1e-9)
