"""What the user's loggers are told of a run, as they write it down."""

import json
import time
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_znorm import _lightning
from lightning_znorm._lightning import find_classes
from lightning_znorm.cli.parser import make_cli_class
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.question.methods import parse_methods
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs import checkpoint as checkpoints
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.loggers import Identity, find_arguments
from lightning_znorm.compare.runs.perform import Task, perform
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe, FactoryRecipe, check_trainer
from tests.compare.tiny import TinyData, TinyModel
from tests.helpers import PACKAGES, recording_logger

NAME, GROUP = "znorm, lr=0.01, seed 1", "znorm, lr=0.01"
PARAMETERS = {"method": "znorm", "setting": "lr=0.01", "seed": 1}
IDENTITY = Identity(NAME, GROUP, PARAMETERS, "out/znorm-1a2b")
RUN = Run(parse_methods("znorm")[0], Setting(0, {"lr": 0.01}), 1)
PLAIN_RUN = Run(RUN.method, Setting(), 1)
TAGS = {"method": "znorm", "setting": "lr=0.01", "seed": "1"}


# which arguments


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


# what is written by real runs


def folder_of(run):
    return Path("out/runs").absolute() / run.key


def train(recipe, run, **options):
    result = perform(Task(run, recipe, folder_of(run), **options))
    assert (result.status, result.error) == ("finished", None)
    return result


def configure(package, *loggers):
    """The recipe of a configuration, written out in full as the command does."""
    boring = f"{package}.demos.boring_classes"
    trainer = {"max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1, "limit_val_batches": 2}
    flags = [f"--model={boring}.BoringModel", f"--data={boring}.BoringDataModule"]
    flags += [f"--trainer.{key}={value}" for key, value in trainer.items()]
    flags.append(f"--trainer.logger={json.dumps(loggers if len(loggers) > 1 else loggers[0])}")
    cli = make_cli_class(package, fit_schema=True)(args=flags, run=False, save_config_callback=None)
    dumped = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False, skip_link_targets=False))
    del dumped["seed_everything"]
    return ConfiguredRecipe(dumped, package)


def config_of(package, logger, **arguments):
    return {"class_path": f"{package}.loggers.{logger}", "init_args": arguments}


def from_functions(logger, model=TinyModel, **arguments):
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    return FactoryRecipe(model, TinyData, {**trainer, "logger": logger, **arguments})


def read_events(folder):
    """The metrics and the hyperparameters that TensorBoard shows."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in shown.items()}
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}, values


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


def interrupt(recipe, run, monkeypatch):
    """Train until the second epoch."""
    monkeypatch.setattr(checkpoints, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_MIN_RATIO", 0.0)
    checkpoint = find_checkpoint(folder_of(run))
    Path("interrupt").touch()
    assert perform(Task(run, recipe, folder_of(run), checkpoint=checkpoint)).error == "RuntimeError: interrupted"
    Path("interrupt").unlink()
    assert checkpoint.is_file()
    return checkpoint


class Interrupted(TinyModel):
    def on_train_batch_start(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 2 and Path("interrupt").exists():
            raise RuntimeError("interrupted")


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
