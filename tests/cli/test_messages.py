"""What the parser finds is told in one line, with the nearest name and without the usage."""

import argparse
import sys
from pathlib import Path

import pytest
import yaml

from lightning_znorm.__main__ import main

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = "tests.compare.tiny"
MODEL = f"--model={TINY}.TinyModel"
COMPARE = ["compare", MODEL, f"--data={TINY}.TinyData"]
BOTH = ("fit", pytest.param("compare", marks=pytest.mark.long))
NO_MODEL = "A model is missing: pass its class (`--model my_module.MyModel`) or a file that names it (`--config FILE`)."


def error_of(capsys, *args):
    """The one line that a command prints, after `lightning-znorm: error: `."""
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    head, _, message = line.partition("lightning-znorm: error: ")
    assert not head
    return message


@pytest.mark.parametrize("command", ["fit", "validate", "compare"])
def test_a_model_is_missing(capsys, command):
    assert error_of(capsys, command) == NO_MODEL


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--znorm.epss=1", "--znorm.eps"),
        ("--trainer.max_epoch=3", "--trainer.max_epochs"),
        ("--trainer.max_epoch 3", "--trainer.max_epochs"),
        ("--modle=3", "--model"),
        ("--seed_everythin=3", "--seed_everything"),
    ],
)
@pytest.mark.parametrize("command", BOTH)
def test_a_misspelt_option(capsys, command, option, hint):
    message = error_of(capsys, command, MODEL, *option.split())
    assert message == f"unrecognized arguments: {option}. Did you mean '{hint}'?"


@pytest.mark.parametrize("option", ["--trainer.xyz=1", "--nothing_like_it=1", "stray"])
def test_an_option_that_is_like_no_other(capsys, option):
    assert error_of(capsys, "fit", MODEL, option) == f"unrecognized arguments: {option}."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--compare.confrim=3"], "unrecognized arguments: --compare.confrim=3. Did you mean '--compare.confirm'?"),
        (["--compare.confirm", "abc"], "`compare.confirm`: expected int or list, but got 'abc'"),
        (["--compare.trials=many"], "`compare.trials`: expected int, but got 'many'"),
        (["--compare.width=wide"], "`compare.width`: expected float, but got 'wide'"),
        (["--compare.mode", "best"], "`compare.mode`: expected 'min' or 'max', but got 'best'"),
        (["--compare.dry_run=perhaps"], "`compare.dry_run`: expected bool, but got 'perhaps'"),
    ],
)
def test_an_option_of_compare(capsys, args, message):
    assert error_of(capsys, *COMPARE, *args) == message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.init_args.lrr=3"], f"`model`: {TINY}.TinyModel: there is no argument `lrr`. Did you mean 'lr'?"),
        (["--model.lrr", "3"], f"`model`: {TINY}.TinyModel: there is no argument `lrr`. Did you mean 'lr'?"),
        (["--model.lr=fast"], f"`model`: {TINY}.TinyModel: `lr`: expected float, but got 'fast'"),
        (["--model.net.size=3"], f"`model`: {TINY}.TinyModel: there is no argument `net.size`."),
        (
            ["--optimizer=Adam", "--optimizer.lrr=1"],
            "`optimizer`: torch.optim.Adam: there is no argument `lrr`. Did you mean 'lr'?",
        ),
        (
            ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStoping"],
            "`trainer.callbacks`: lightning.pytorch.callbacks.EarlyStoping: module 'lightning.pytorch.callbacks' has no"
            " attribute 'EarlyStoping'. Did you mean 'EarlyStopping'?",
        ),
        (["--trainer.max_epochs=many"], "`trainer.max_epochs`: expected int, but got 'many'"),
        (
            ["--znorm.nonfinite=ignore"],
            "`znorm.nonfinite`: expected 'propagate' or 'skip' or 'raise', but got 'ignore'",
        ),
        (["--znorm", "nofile.yaml"], "`znorm`: there is no file 'nofile.yaml'."),
        (["--trainer"], "argument --trainer: expected one argument"),
        (["--help=trainer"], "argument --help: expected nothing or `all`, but got 'trainer'"),
        (
            [f"--data={TINY}.TinyModel"],
            f"`data`: Import path does not correspond to a subclass of LightningDataModule ({TINY}.TinyModel)",
        ),
    ],
)
@pytest.mark.parametrize("command", BOTH)
def test_a_wrong_value(capsys, command, args, message):
    assert error_of(capsys, command, MODEL, *args) == message


@pytest.mark.parametrize("command", BOTH)
def test_a_class_or_file_that_does_not_exist(capsys, command):
    name = f"{TINY}.TinyMode"
    assert error_of(capsys, command, f"--model={name}") == (
        f"`model`: {name}: module '{TINY}' has no attribute 'TinyMode'. Did you mean 'TinyModel'?"
    )
    assert error_of(capsys, command, "--model=no_module.Net") == "`model`: no_module.Net: No module named 'no_module'"
    assert error_of(capsys, command, "--config", "nofile.yaml") == (
        f"`config`: File does not exist: '{Path.cwd() / 'nofile.yaml'}'"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trainer": {"max_epoch": 3}}, "there is no option `trainer.max_epoch`. Did you mean 'trainer.max_epochs'?"),
        ({"znorm": {"epss": 1}}, "there is no option `znorm.epss`. Did you mean 'znorm.eps'?"),
        (
            {"model": {"class_path": f"{TINY}.TinyModel", "init_args": {"lrr": 1}}},
            f"`model`: {TINY}.TinyModel: there is no argument `lrr`. Did you mean 'lr'?",
        ),
    ],
)
@pytest.mark.parametrize("command", BOTH)
def test_a_misspelt_key_in_a_file(capsys, command, content, message):
    Path("config.yaml").write_text(yaml.safe_dump({"model": f"{TINY}.TinyModel", **content}))
    assert error_of(capsys, command, "--config=config.yaml") == message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--model.optimizer=torch.optim.Adamm"],
            "`optimizer`: torch.optim.Adamm: module 'torch.optim' has no attribute 'Adamm'. Did you mean 'Adam'?",
        ),
        (
            ["--model.optimizer=Adma"],
            "`optimizer`: expected the import path of a class or a function, but got 'Adma'",
        ),
        (["--model.optimizer.lrr=1"], "`optimizer`: torch.optim.Adam: there is no argument `lrr`. Did you mean 'lr'?"),
        (["--model.optimizer.lr=fast"], "`optimizer`: torch.optim.Adam: `lr`: expected float, but got 'fast'"),
        (
            ["--model.lr_scheduler=torch.optim.lr_scheduler.StepL"],
            "`lr_scheduler`: torch.optim.lr_scheduler.StepL: module 'torch.optim.lr_scheduler' has no attribute"
            " 'StepL'. Did you mean 'StepLR'?",
        ),
        (
            ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR"],
            "`lr_scheduler`: torch.optim.lr_scheduler.StepLR: these arguments are required: step_size.",
        ),
        (
            ["--model.lr_scheduler=lightning_znorm.vision.CosineAnnealing", "--model.lr_scheduler.total_step=4"],
            "`lr_scheduler`: lightning_znorm.vision.CosineAnnealing: there is no argument `total_step`. Did you mean"
            " 'total_steps'?",
        ),
    ],
)
@pytest.mark.parametrize("command", BOTH)
def test_a_wrong_optimizer_or_scheduler_of_a_model(capsys, command, args, message):
    model = "lightning_znorm.vision.ImageClassifier"
    assert error_of(capsys, command, f"--model={model}", *args) == f"`model`: {model}: {message}"


def test_a_misspelt_key_of_compare_in_a_file(capsys):
    Path("config.yaml").write_text(yaml.safe_dump({"compare": {"trails": 3}}))
    message = error_of(capsys, *COMPARE, "--config=config.yaml")
    assert message == "there is no option `compare.trails`. Did you mean 'compare.trials'?"


@pytest.mark.parametrize("command", BOTH)
def test_a_missing_extra_is_named(capsys, monkeypatch, command):
    for name in [name for name in sys.modules if name.startswith("lightning_znorm.vision.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    message = error_of(capsys, command, f"--config={EXAMPLES / 'digits.yaml'}")
    assert message == (
        "`model`: `lightning_znorm.vision.ImageClassifier` needs torchvision, which is not installed. Install it:"
        ' `pip install "lightning-znorm[vision]"`.'
    )


def test_a_misspelt_command(capsys):
    for command in ("compre", "--config=my.yaml compre"):
        message = error_of(capsys, *command.split())
        assert message.startswith("Unknown command 'compre'. Did you mean 'compare'?")
    for none in ([], ["--foo"]):
        assert error_of(capsys, *none).startswith(
            "A command is missing: fit, validate, test, predict, compare, report, doctor."
        )


def test_no_file_names_a_command(capsys):
    Path("config.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 1}}))
    message = error_of(capsys, "--config=config.yaml")
    assert message.startswith("A command is missing (fit, validate, test, predict, compare), as in")


def test_the_whole_error_on_demand(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(argparse.ArgumentError, match="Subtypes"):
        main(["fit", MODEL, "--trainer.max_epochs=many"])
