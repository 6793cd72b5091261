"""The comparisons of larger models: their commands."""

from pathlib import Path

import pytest

from examples import larger
from examples.collection import RATE
from lightning_znorm.compare.command import make_parser
from lightning_znorm.compare.configuration import clean_configuration, flatten
from lightning_znorm.compare.question.arguments import parse_question
from tests import warm

ROOT = Path(__file__).parents[1]
ALL = [(network, optimizer) for network in larger.NETWORKS for optimizer in ("sgd", "adam")]


@pytest.mark.parametrize(("network", "optimizer"), ALL[::3])
@pytest.mark.parametrize("is_tree", [True, False])
def test_commands(network, optimizer, is_tree, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    if is_tree:
        Path("data", "cifar10-jpeg").mkdir(parents=True)
    flags = larger.make_flags(network, optimizer, Path("data"), Path("out"))
    cli = make_parser("lightning.pytorch")(args=flags, run=False)
    configuration, chosen = clean_configuration(cli), cli.config.compare
    model, data = configuration["model"]["init_args"], configuration["data"]["init_args"]
    if network in larger.CHARACTERS:
        assert model["norm_first"] == (network == "characters")
        assert (chosen.monitor, chosen.vary) == ("val_loss", "data.init_args.seed")
        assert model["lr_scheduler"]["init_args"]["T_max"] == data["steps"] * configuration["trainer"]["max_epochs"]
    else:
        assert model["backbone"] == network
        assert data.get("image_size") == (16 if is_tree else None)
        assert configuration["trainer"]["max_steps"] == 300
        assert chosen.monitor == "val_acc"
    assert model["optimizer"]["class_path"] == f"torch.optim.{'SGD' if optimizer == 'sgd' else 'Adam'}"
    draft = parse_question(chosen.methods, chosen.sweep, chosen.monitor, configured=flatten(configuration))
    starts = {label: values.start for label, values in draft.sweep[RATE].items()}
    assert starts.keys() == {*larger.STARTS}
    assert starts["znorm"] == (3e-4 if optimizer == "sgd" else 1e-3)


def test_list():
    done = warm.run("-m", "examples.larger", "cifar_vgg11", "--list", env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line] == ["cifar_vgg11-sgd:", "cifar_vgg11-adam:"]


def test_unknown_network():
    done = warm.run("-m", "examples.larger", "cifar_vgg", env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "there is no network 'cifar_vgg', only cifar_plain20, " in done.stderr
