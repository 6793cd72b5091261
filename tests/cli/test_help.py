"""The help of the commands: short, with what is of this package first."""

import pytest

from lightning_znorm.__main__ import main

MODEL = "tests.compare.tiny.TinyModel"


@pytest.fixture
def help_of(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def help_of(*args):
        with pytest.raises(SystemExit) as exit_:
            main(args)
        assert not exit_.value.code
        return capsys.readouterr().out

    return help_of


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["--config=missing.yaml", "--help"]])
def test_the_commands(capsys, args):
    main(args)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 25
    for command in ("fit", "validate", "test", "predict", "compare", "report"):
        assert sum(line.startswith(f"  {command} ") for line in lines) == 1


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_of_compare(help_of, option):
    text = help_of("compare", option)
    assert len(text.splitlines()) <= 120
    first = [line for line in text.splitlines() if line.startswith("  --")][:2]
    assert [line.split()[0] for line in first] == ["--compare", "--compare.methods"]
    assert text.startswith("usage: lightning-znorm compare [options]\n\n")
    for topic in ("trainer", "model", "data", "znorm", "optimizer", "lr_scheduler"):
        assert f"\n  --{topic}.help " in text
    for absent in (
        "--trainer.max_epochs",
        "--trainer.callbacks.help",
        "--znorm.eps",
        "--ckpt_path",
        "--seed_everything",
    ):
        assert absent not in text


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_of_the_other_commands(help_of, command):
    text = help_of(command, "--help")
    assert len(text.splitlines()) <= 120
    assert text.startswith(f"usage: lightning-znorm {command} [options]\n\n")
    assert "--znorm and --no_znorm switch it on and off" in text
    assert text.index("--znorm.eps") < text.index("--ckpt_path") < text.index("--trainer.help")
    assert "--trainer.max_epochs" not in text


def test_of_report(help_of):
    text = help_of("report", "--help")
    assert text.startswith("usage: lightning-znorm report [-h] DIR [DIR ...]\n")
    assert "the folder of a comparison (`--compare.out`)" in text


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_of_a_group(help_of, command):
    trainer = help_of(command, "--trainer.help")
    assert "--trainer.max_epochs" in trainer
    assert "--trainer.callbacks.help" in trainer
    assert "--znorm" not in trainer
    znorm = help_of(command, "--znorm.help")
    assert "--znorm.min_ndim" in znorm
    assert "--trainer" not in znorm
    assert "--model.lr" in help_of(command, "--model.help", MODEL)
    assert "--optimizer.betas" in help_of(command, "--optimizer.help=Adam")


@pytest.mark.parametrize(("command", "option"), [("fit", "--ckpt_path"), ("compare", "--compare.methods")])
def test_everything(help_of, command, option):
    text = help_of(command, "--help=all")
    for expected in (option, "--trainer.max_epochs", "--model.help", "--znorm.eps", "--lr_scheduler"):
        assert expected in text
