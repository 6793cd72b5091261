"""Runs with the user's loggers, for the tests of these."""

import json
from pathlib import Path

import yaml

from lightning_znorm.cli.parser import make_cli_class
from lightning_znorm.compare.question.methods import parse_methods
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs import checkpoint as checkpoints
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.perform import Task, perform
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe, FactoryRecipe
from tests.compare.tiny import TinyData, TinyModel

NAME, GROUP = "znorm, lr=0.01, seed 1", "znorm, lr=0.01"
RUN = Run(parse_methods("znorm")[0], Setting(0, {"lr": 0.01}), 1)
PLAIN_RUN = Run(RUN.method, Setting(), 1)
TAGS = {"method": "znorm", "setting": "lr=0.01", "seed": "1"}


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
