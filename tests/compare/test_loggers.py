"""What the user's loggers are told of a run, by their arguments and in the files that they write."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_znorm import _lightning
from lightning_znorm._lightning import find_classes
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.loggers import Identity, find_arguments
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
from tests.compare.tiny import TinyModel
from tests.helpers import PACKAGES, recording_logger

PARAMETERS = {"method": "znorm", "setting": "lr=0.01", "seed": 1}
IDENTITY = Identity(NAME, GROUP, PARAMETERS, "out/znorm-1a2b")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("CSVLogger", {}, {"version": "out/znorm-1a2b"}),
        ("CSVLogger", {"version": 0}, {"version": "version_0/out/znorm-1a2b"}),
        ("TensorBoardLogger", {"version": "first"}, {"version": "first/out/znorm-1a2b"}),
        (
            "WandbLogger",
            {},
            {"name": NAME, "group": GROUP, "tags": ["znorm", "lr=0.01", "seed 1"], "id": None, "resume": None},
        ),
        (
            "WandbLogger",
            {"name": "mine", "group": "ours", "tags": ["a", "znorm"], "version": "v", "resume": "must"},
            {
                "name": f"mine, {NAME}",
                "group": "ours",
                "tags": ["a", "znorm", "lr=0.01", "seed 1"],
                "id": "v-out-znorm-1a2b",
                "resume": "must",
            },
        ),
        ("MLFlowLogger", {}, {"run_name": NAME, "tags": TAGS, "run_id": None}),
        (
            "MLFlowLogger",
            {"run_name": "mine", "tags": {"a": "b", "seed": "all"}, "run_id": "c"},
            {"run_name": f"mine, {NAME}", "tags": {**TAGS, "a": "b", "seed": "all"}, "run_id": None},
        ),
        ("MLFlowLogger", {"tags": {"mlflow.runName": "mine"}}, {"run_name": f"mine, {NAME}", "tags": TAGS}),
        ("CometLogger", {"name": "mine"}, {}),
    ],
)
def test_arguments_are_kept_and_added_to(name, given, expected):
    for cls in find_classes("loggers", name):
        found = find_arguments(cls, given, IDENTITY)
        assert expected.items() <= found.items()
        assert find_arguments(cls, {**given, **found}, IDENTITY) == found


def test_a_run_goes_on_under_the_name_that_a_service_gave_it():
    (wandb, *_), (mlflow, *_) = find_classes("loggers", "WandbLogger"), find_classes("loggers", "MLFlowLogger")
    assert {"id": "x1", "resume": "allow"}.items() <= find_arguments(wandb, {}, IDENTITY, "x1").items()
    assert find_arguments(mlflow, {}, IDENTITY, "x1")["run_id"] == "x1"


def test_what_the_environment_says_counts_as_the_users(monkeypatch):
    for name, value in {"NAME": "mine", "RUN_GROUP": "ours", "TAGS": "a,b", "RUN_ID": "v"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    found = find_arguments(find_classes("loggers", "WandbLogger")[0], {}, IDENTITY)
    assert (found["name"], found["group"], found["id"]) == (f"mine, {NAME}", "ours", "v-out-znorm-1a2b")
    assert found["tags"] == ["a", "b", "znorm", "lr=0.01", "seed 1"]


def test_a_long_tag_is_cut_as_the_service_refuses_it():
    identity = Identity(NAME, GROUP, {"setting": "x" * 65}, "out/znorm-1a2b")
    assert find_arguments(find_classes("loggers", "WandbLogger")[0], {}, identity)["tags"] == ["x" * 64]


def read_events(folder):
    """The metrics and the hyperparameters that TensorBoard shows."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in shown.items()}
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}, values


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_in_a_folder_of_each_run(package):
    csv, board = (config_of(package, name, save_dir="logs", name=name) for name in ("CSVLogger", "TensorBoardLogger"))
    board["init_args"]["sub_dir"] = "below"
    recipe, runs = configure(package, csv, board), [Run(PLAIN_RUN.method, Setting(), seed) for seed in (0, 1)]
    for run in runs:
        train(recipe, run)
        expected = {"method": "znorm", "seed": run.seed}
        assert yaml.safe_load(Path("logs/CSVLogger/out", run.key, "hparams.yaml").read_text()) == expected
        assert read_events(f"logs/TensorBoardLogger/out/{run.key}/below")[1] == expected
    assert len(list(Path("logs").glob("*/*/*"))) == 4
    assert not list(Path("out").rglob("loggers.json"))


class Own(CSVLogger):
    """Takes no argument for what runs have of their own."""

    def __init__(self):
        super().__init__("logs", name="own")


def test_a_logger_without_such_arguments_has_a_folder_of_each_run_too():
    train(configure(PACKAGES[0], {"class_path": f"{__name__}.Own"}), PLAIN_RUN)
    assert [path.name for path in Path("logs/own/out").iterdir()] == [PLAIN_RUN.key]


def test_a_configuration_does_not_need_the_private_attributes(monkeypatch):
    monkeypatch.setattr(_lightning, "_LOGGER_ATTRIBUTES", {})
    train(configure(PACKAGES[0], config_of(PACKAGES[0], "CSVLogger", save_dir="logs", name="plain")), PLAIN_RUN)
    assert [path.name for path in Path("logs/plain/out").iterdir()] == [PLAIN_RUN.key]


def test_an_argument_of_a_logger_may_be_swept():
    run = Run(RUN.method, Setting(0, {"trainer.logger.init_args.save_dir": "swept"}), 1)
    train(configure(PACKAGES[0], config_of(PACKAGES[0], "CSVLogger", save_dir="logs", name="plain")), run)
    assert [path.name for path in Path("swept/plain/out").iterdir()] == [run.key]
    assert not Path("logs").exists()


def test_tensorboard_shows_the_hyperparameters_of_the_module_too():
    class WithHyperparameters(TinyModel):
        def __init__(self, lr, seed="none", width=4):
            super().__init__(lr, width)
            self.save_hyperparameters()

    train(from_functions([TensorBoardLogger("logs")], WithHyperparameters), RUN)
    metrics, shown = read_events(f"logs/lightning_logs/out/{RUN.key}")
    assert shown == {"method": "znorm", "setting": "lr=0.01", "lr": 0.01, "seed": "none", "width": 4}
    assert metrics["train_loss"] == [*range(10)]


def test_a_logger_of_any_class_is_told_by_hyperparameters():
    told = []
    logger, other = recording_logger(PACKAGES[0]), recording_logger(PACKAGES[0])
    logger.log_hyperparams = told.append

    def refuse(parameters):
        raise RuntimeError("not today")

    other.log_hyperparams = refuse
    with pytest.warns(UserWarning, match="`Recording` was not told the method, setting and seed of the run: not today"):
        train(from_functions([logger, lambda: other]), RUN)
    assert told == [PARAMETERS]


def test_a_trial_is_told_nothing():
    recipe = from_functions(CSVLogger("logs", name="mine", version="first"))
    train(recipe, RUN, is_trial=True)
    assert (folder_of(RUN) / "mine/first/metrics.csv").is_file()
    assert not Path("logs").exists()


def test_a_resumed_run_goes_on_in_its_folder(monkeypatch):
    recipe = from_functions(
        lambda: [CSVLogger("logs", name="csv"), TensorBoardLogger("logs", name="board")], Interrupted
    )
    checkpoint = interrupt(recipe, RUN, monkeypatch)
    assert train(recipe, RUN, checkpoint=checkpoint).resumed == 1
    folder = Path("logs/csv/out") / RUN.key
    before, after = (pd.read_csv(folder / name)["step"].max() for name in ("metrics-1.csv", "metrics.csv"))
    assert (before, after) == (6, 10)
    assert {*read_events(f"logs/board/out/{RUN.key}")[0]["train_loss"]} == {*range(10)}
    assert len(list(Path("logs").glob("*/*/*"))) == 2
