"""What W&B and MLflow are told of a run, as they write it down."""

import json
import time
from importlib import import_module
from pathlib import Path

import pytest

from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.recipes import check_trainer
from tests.compare.logged import (
    GROUP,
    NAME,
    PLAIN_RUN,
    RUN,
    TAGS,
    Interrupted,
    config_of,
    configure,
    folder_of,
    from_functions,
    interrupt,
    train,
)
from tests.helpers import PACKAGES


def read_wandb():
    """Each run, its configuration and exit status in files of W&B, which another process writes."""
    deadline = time.monotonic() + 120
    found = read_wandb_files()
    while any(status is None for _, _, status in found) and time.monotonic() < deadline:
        time.sleep(0.2)
        found = read_wandb_files()
    return found


def read_wandb_files():
    """The same as far as it is written: logs of LevelDB, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(Path().glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        content, at, record, run, config, status = path.read_bytes(), 7, b"", None, {}, None
        while at + 7 <= len(content):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
            record += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                parsed, record = Record.FromString(record), b""
                run = parsed.run if parsed.WhichOneof("record_type") == "run" else run
                status = parsed.exit.exit_code if parsed.WhichOneof("record_type") == "exit" else status
                config |= {update.key: json.loads(update.value_json) for update in parsed.config.update}
        found.append((run, config, status))
    return found


def read_mlflow(uri):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return {
        experiment.name: sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.run_name)
        for experiment in client.search_experiments()
    }


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_a_configuration_with_wandb(package):
    pytest.importorskip("wandb")
    # W&B remembers the folder of the first run of a process
    arguments = {"save_dir": str(Path().absolute()), "offline": True, "name": "mine", "tags": ["a"], "project": "ours"}
    train(configure(package, config_of(package, "WandbLogger", **arguments)), PLAIN_RUN)
    ((run, config, status),) = read_wandb()
    assert (run.display_name, run.run_group, run.project) == ("mine, znorm, seed 1", "znorm", "ours")
    assert [*run.tags] == ["a", "znorm", "seed 1"]
    assert {"method": "znorm", "seed": 1}.items() <= config.items()
    assert status == 0
    assert json.loads((folder_of(PLAIN_RUN) / "loggers.json").read_text()) == [run.run_id]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_of_wandb_goes_on_and_one_that_starts_again_is_another(monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    folder = Path().absolute()
    recipe = from_functions(lambda: WandbLogger(save_dir=folder, offline=True, group="ours"), Interrupted)
    checkpoint = interrupt(recipe, RUN, monkeypatch)
    train(recipe, RUN, checkpoint=checkpoint)
    checkpoint.unlink()
    train(recipe, RUN, checkpoint=checkpoint)
    runs, _, statuses = zip(*read_wandb(), strict=True)
    assert statuses == (1, 0, 0)
    assert runs[0].run_id == runs[1].run_id != runs[2].run_id
    assert {(run.display_name, run.run_group, *run.tags) for run in runs} == {
        (NAME, "ours", "znorm", "lr=0.01", "seed 1")
    }


def test_a_logger_of_wandb_from_python_must_be_a_function():
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(offline=True)
    with pytest.raises(ValueError, match=r"Pass a function that makes it: `lambda: WandbLogger\(…\)`"):
        check_trainer({"logger": [logger]})
    check_trainer({"logger": lambda: logger})


@pytest.mark.slow
@pytest.mark.parametrize("package", [PACKAGES[0], pytest.param(PACKAGES[1], marks=pytest.mark.long)])
def test_a_configuration_with_mlflow(package):
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{Path('tracking.db').absolute()}"
    arguments = {"tracking_uri": uri, "experiment_name": "ours", "tags": {"a": "b"}}
    recipe = configure(package, config_of(package, "MLFlowLogger", **arguments))
    for seed in (0, 1):
        train(recipe, Run(RUN.method, Setting(), seed))
    runs = read_mlflow(uri)["ours"]
    assert [run.info.run_name for run in runs] == ["znorm, seed 0", "znorm, seed 1"]
    for seed, run in enumerate(runs):
        assert {"method": "znorm", "seed": str(seed), "a": "b"}.items() <= run.data.tags.items()
        assert run.data.params == {"method": "znorm", "seed": str(seed)}
        assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_of_mlflow_goes_on(monkeypatch):
    pytest.importorskip("mlflow")
    loggers = import_module("lightning.pytorch.loggers")
    uri = f"sqlite:///{Path('tracking.db').absolute()}"
    recipe = from_functions(lambda: loggers.MLFlowLogger("ours", "mine", uri), Interrupted)
    checkpoint = interrupt(recipe, RUN, monkeypatch)
    train(recipe, RUN, checkpoint=checkpoint)
    (run,) = read_mlflow(uri)["ours"]
    assert (run.info.run_name, run.info.status) == (f"mine, {NAME}", "FINISHED")
    assert TAGS.items() <= run.data.tags.items()
    assert {"train_loss", "val_acc", "test_acc"} <= run.data.metrics.keys()


@pytest.mark.slow
@pytest.mark.long
def test_runs_side_by_side_leave_whole_logs():
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    folder = Path().absolute()
    uri = f"sqlite:///{folder / 'tracking.db'}"

    def make_loggers():
        from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

        return [WandbLogger(save_dir=folder, offline=True), MLFlowLogger("ours", tracking_uri=uri)]

    recipe = from_functions(make_loggers)
    runs = [Run(RUN.method, RUN.setting, seed) for seed in (0, 1)]
    tasks = [Task(run, recipe, folder_of(run)) for run in runs]
    results = [event.result for event in ProcessExecutor([{}, {}]).execute(tasks) if event.result is not None]
    assert [(result.status, result.error) for result in results] == [("finished", None)] * 2
    names = [f"{GROUP}, seed 0", f"{GROUP}, seed 1"]
    assert sorted((run.display_name, status) for run, _, status in read_wandb()) == [(name, 0) for name in names]
    assert [(run.info.run_name, run.info.status) for run in read_mlflow(uri)["ours"]] == [
        (name, "FINISHED") for name in names
    ]
