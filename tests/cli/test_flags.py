"""The ZNorm flags through the real parser and the real command line."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from lightning_znorm import ZNorm
from lightning_znorm.__main__ import main
from lightning_znorm.cli import ZNormArguments, ZNormCLI
from tests import warm
from tests.helpers import PACKAGES

BORING = "lightning.pytorch.demos.boring_classes.BoringModel"
MODEL = f"--model={BORING}"
EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def printed(capsys, *args, subcommand=None):
    """The group `znorm` of `--print_config`, of a command or of the CLI without one, whose parser is made sooner."""
    start = partial(ZNormCLI, run=False) if subcommand is None else main
    with pytest.raises(SystemExit) as exit_:
        start(args=[*(subcommand or ()), MODEL, *args, "--print_config"])
    assert exit_.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)["znorm"]


@pytest.fixture
def files(tmp_path):
    contents = {
        "group.yaml": {"eps": 1e-6, "min_ndim": 2},
        "group_off.yaml": {"eps": 1e-6, "enabled": False},
        "config.yaml": {"znorm": {"eps": 1e-6}},
        "config_off.yaml": {"znorm": {"eps": 1e-6, "enabled": False}},
        "scalar_off.yaml": {"znorm": False},
        "scalar_on.yaml": {"znorm": True},
        "config_fit.yaml": {"fit": {"znorm": {"min_ndim": 2}}},
    }
    for name, content in contents.items():
        Path(name).write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], {"enabled": False}),
        (["--znorm"], {"enabled": True, "eps": 1e-10}),
        (["--no_znorm"], {"enabled": False}),
        (["--znorm", "--no_znorm"], {"enabled": False}),
        (["--no_znorm", "--znorm"], {"enabled": True}),
        (["--znorm", "--seed_everything=1"], {"enabled": True}),
        (["--znorm.eps=1e-6"], {"enabled": True, "eps": 1e-6}),
        (["--znorm.eps", "1e-6"], {"enabled": True, "eps": 1e-6}),
        (["--znorm.eps=1e-6", "--no_znorm"], {"enabled": False, "eps": 1e-6}),
        (["--no_znorm", "--znorm.eps=1e-6"], {"enabled": True, "eps": 1e-6}),
        (["--znorm.enabled=false"], {"enabled": False}),
        (["--znorm.min_ndim=2", "--znorm.enabled=false"], {"enabled": False, "min_ndim": 2}),
        (["--znorm.center=false"], {"enabled": True, "center": False}),
        (["--znorm.exclude=*.bias"], {"enabled": True, "exclude": "*.bias"}),
        (["--znorm.exclude=['*.bias', head.*]"], {"enabled": True, "exclude": ["*.bias", "head.*"]}),
        (["--znorm.exclude+=a", "--znorm.exclude+=b"], {"enabled": True, "exclude": ["a", "b"]}),
        (["--znorm.start_step=3", "--znorm.stop_step=9"], {"enabled": True, "start_step": 3, "stop_step": 9}),
        (["--znorm.nonfinite=skip", "--znorm.max_skips=3"], {"enabled": True, "nonfinite": "skip", "max_skips": 3}),
        (["--znorm.log_stats=layers"], {"enabled": True, "log_stats": "layers"}),
        (["--znorm.log_stats=false"], {"enabled": True, "log_stats": False}),
        (["--znorm", "group.yaml"], {"enabled": True, "eps": 1e-6, "min_ndim": 2}),
        (["--znorm=group.yaml"], {"enabled": True, "eps": 1e-6, "min_ndim": 2}),
        (["--znorm", "group_off.yaml"], {"enabled": False, "eps": 1e-6}),
        (["--znorm", "group.yaml", "--znorm.eps=1e-4"], {"enabled": True, "eps": 1e-4, "min_ndim": 2}),
        (["--config=config.yaml"], {"enabled": True, "eps": 1e-6}),
        (["--config", "config.yaml", "--no_znorm"], {"enabled": False, "eps": 1e-6}),
        (["--znorm=true"], {"enabled": True}),
        (["--znorm=False"], {"enabled": False}),
        (["--config=scalar_off.yaml"], {"enabled": False}),
        (["--config=scalar_on.yaml"], {"enabled": True}),
        (["--config=scalar_off.yaml", "--znorm.eps=1e-6"], {"enabled": True, "eps": 1e-6}),
        (["--config=config_off.yaml"], {"enabled": False, "eps": 1e-6}),
        (["--config=config_off.yaml", "--znorm"], {"enabled": True, "eps": 1e-6}),
        (["--znorm", "--config=config_off.yaml"], {"enabled": False, "eps": 1e-6}),
    ],
)
def test_flags(capsys, files, args, expected):
    group = printed(capsys, *args)
    assert {name: group[name] for name in expected} == expected


def test_a_configuration_of_several_subcommands(capsys, files):
    group = printed(capsys, subcommand=("--config=config_fit.yaml", "fit"))
    assert group["enabled"]
    assert group["min_ndim"] == 2


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_every_subcommand(capsys, subcommand):
    assert printed(capsys, "--znorm", subcommand=(subcommand,))["enabled"]


def test_what_print_config_prints_is_a_configuration(capsys):
    group = printed(capsys, "--znorm.eps=1e-6", "--znorm.exclude=*.bias", "--znorm.center=false", "--znorm.stop_step=7")
    Path("again.yaml").write_text(yaml.safe_dump({"znorm": group}))
    assert printed(capsys, "--config=again.yaml") == group


def callbacks(*args, **kwargs):
    cli = ZNormCLI(run=False, args=[MODEL, *QUICK, *args], **kwargs)
    return [callback for callback in cli.trainer.callbacks if isinstance(callback, ZNorm)]


def test_the_trainer_gets_the_callback(files):
    (callback,) = callbacks("--znorm", "group.yaml")
    assert (callback.enabled, callback.min_ndim, callback.eps) == (True, 2, 1e-6)
    (callback,) = callbacks("--znorm.min_ndim=2", "--znorm.exclude=[a, b]")
    assert (callback.enabled, callback.min_ndim, callback.exclude) == (True, 2, ("a", "b"))
    (callback,) = callbacks()
    assert not callback.enabled


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--znorm.min_ndim=2", "--znorm.nonfinite=skip"], (True, 2, "skip")),
        (["--znorm", "--no_znorm"], (False, 0, "propagate")),
        (["--config=config.yaml"], (True, 0, "propagate")),
        (["--znorm=group.yaml"], (True, 2, "propagate")),
        ([], (False, 0, "propagate")),
    ],
)
def test_a_command_line_of_pytorch_lightning(files, args, expected):
    import pytorch_lightning as pl
    from pytorch_lightning.cli import LightningCLI
    from pytorch_lightning.demos.boring_classes import BoringModel

    class MyCLI(ZNormArguments, LightningCLI):
        pass

    cli = MyCLI(BoringModel, run=False, args=[*QUICK, *args], save_config_callback=None)
    assert isinstance(cli.trainer, pl.Trainer)
    (callback,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, ZNorm)]
    assert (callback.enabled, callback.min_ndim, callback.nonfinite) == expected
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.global_step == 2


def test_a_drop_in_for_subclasses_and_parsers_of_ones_own():
    from lightning.pytorch.cli import LightningArgumentParser

    class MyParser(LightningArgumentParser):
        pass

    class MyCLI(ZNormCLI):
        def add_arguments_to_parser(self, parser):  # without super(), as LightningCLI's users write it
            parser.add_argument("--mine", default=1)

    cli = MyCLI(run=False, args=[MODEL, *QUICK, "--znorm", "--mine=2"], parser_class=MyParser)
    assert isinstance(cli.parser, MyParser)
    assert cli.config.mine in (2, "2")
    assert cli.config.znorm.enabled


def test_warns_when_arguments_come_without_switching_it_on(files):
    Path("default.yaml").write_text("znorm: {eps: 1.0e-6}")
    with pytest.warns(UserWarning, match=r"`znorm\.eps` is set, but ZNorm is off.*--znorm"):
        callbacks(parser_kwargs={"default_config_files": ["default.yaml"]})


def test_trains_and_saves_its_configuration(tmp_path):
    main(["fit", MODEL, *QUICK, "--trainer.logger=true", f"--trainer.default_root_dir={tmp_path}", "--znorm"])
    (saved,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(saved.read_text())["znorm"]["enabled"]


def last_line_of_a_refusal(capsys, *args):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *QUICK, *args])
    assert exit_.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lightning-znorm: error: ")
    return last


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--znorm.eps=0"], "Expected argument `eps` to be a positive finite number, but got 0.0"),
        (["--znorm.stop_step=0"], "Expected argument `stop_step`"),
        (["--znorm.exclude=encoder.*"], "the pattern 'encoder.*' matches no parameter"),
        (["--znorm.nonfinite=skip", "--znorm.max_skips=-1"], "Expected argument `max_skips`"),
        (["--znorm", "--trainer.callbacks+=lightning_znorm.ZNorm"], "2 enabled `ZNorm` callbacks"),
    ],
)
def test_one_clear_line_for_a_wrong_argument(capsys, args, message):
    assert message in last_line_of_a_refusal(capsys, MODEL, *args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.init_args.backbone=resnt18"], "but got 'resnt18'. Did you mean 'resnet18'"),
        (["--model.init_args.optimizer.init_args.lr=-1"], "Argument `optimizer`: Invalid learning rate: -1.0"),
        (["--data.init_args.image_size=2"], "Expected argument `image_size` to be an integer of at least 8, but got 2"),
    ],
)
def test_one_clear_line_for_a_wrong_argument_of_the_models_and_data(capsys, args, message):
    assert message in last_line_of_a_refusal(capsys, f"--config={EXAMPLES / 'digits.yaml'}", *args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--znorm.log_stats=everything"], "znorm.log_stats"),
        (["--znorm.nonfinite=ignore"], "znorm.nonfinite"),
        (["--znorm.min_dim=2"], "--znorm.min_dim"),
        (["--znorm", "missing.yaml"], "znorm"),
        (["--znorm.eps=tiny"], "znorm.eps"),
    ],
)
def test_the_parser_refuses(capsys, args, message):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", MODEL, *QUICK, *args])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_of_others_keep_their_traceback(monkeypatch):
    from lightning.pytorch.demos import boring_classes

    def broken(self, *args):
        raise ValueError("the user's own")

    monkeypatch.setattr(boring_classes.BoringModel, "training_step", broken)
    with pytest.raises(ValueError, match="the user's own"):
        main(["fit", MODEL, *QUICK])


def test_missing_extra(capsys, monkeypatch):
    monkeypatch.setattr("lightning_znorm.errors.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["fit", MODEL])
    assert 'pip install "lightning-znorm[cli]"' in capsys.readouterr().err


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


INSTALLED = Path(sys.executable).parent / "lightning-znorm"


def test_the_installed_command():
    assert run(INSTALLED, "--version").stdout.startswith("lightning-znorm ")


@pytest.mark.long
def test_the_installed_command_trains():
    done = run(INSTALLED, "fit", MODEL, *QUICK, "--znorm.log_stats=summary")
    assert done.returncode == 0, done.stderr
    assert "has no effect: the Trainer has no logger" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_any_lightning_cli_takes_it_as_a_callback(package):
    script = Path("plain.py")
    script.write_text(
        f"from {package}.cli import LightningCLI\n"
        f"from {package}.demos.boring_classes import BoringModel\n"
        "if __name__ == '__main__':\n"
        "    cli = LightningCLI(BoringModel)\n"
        "    print([callback for callback in cli.trainer.callbacks if type(callback).__name__ == 'ZNorm'])\n"
    )
    callback = ["--trainer.callbacks+=lightning_znorm.ZNorm", "--trainer.callbacks.min_ndim=2"]
    done = warm.run(script, "fit", *QUICK, *callback)
    assert done.returncode == 0, done.stderr
    assert "ZNorm(eps=1e-10, exclude=(), min_ndim=2" in done.stdout
    printed = warm.run(script, "fit", *QUICK, *callback, "--print_config")
    config = yaml.safe_load(printed.stdout)
    (entry,) = [entry for entry in config["trainer"]["callbacks"] if entry["class_path"] == "lightning_znorm.ZNorm"]
    assert entry["init_args"]["min_ndim"] == 2
    Path("printed.yaml").write_text(printed.stdout)
    assert warm.run(script, "fit", "--config=printed.yaml", "--trainer.default_root_dir=again").returncode == 0


@pytest.mark.slow
def test_modules_of_pytorch_lightning(capsys):
    theirs = "--model=pytorch_lightning.demos.boring_classes.BoringModel"
    main(["fit", "--package=pytorch_lightning", theirs, *QUICK, "--znorm"])
    main(["fit", theirs, "--package", "pytorch_lightning", *QUICK, "--trainer.default_root_dir=again"])
    for args, package in (([theirs], PACKAGES[1]), (["--package=pytorch_lightning", MODEL], PACKAGES[0])):
        with pytest.raises(SystemExit, match="2"):
            main(["fit", *args, *QUICK])
        assert f"BoringModel). It belongs to {package}: add `--package {package}`.\n" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--package=pl"], ["--package"]])
def test_of_no_package(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fit", MODEL, *option])
    assert "`package` to be one of 'lightning.pytorch', 'pytorch_lightning', but got" in capsys.readouterr().err
