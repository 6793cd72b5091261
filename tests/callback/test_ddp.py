"""Two processes under gloo, as a script starts them: bit-identical, and as one process on the joined batch."""

from pathlib import Path

import pytest
import torch

from lightning_znorm import ZNorm
from tests import warm
from tests.helpers import PACKAGES, make_module, make_trainer, small_network

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from importlib import import_module

import torch

sys.path.insert(0, {root!r})
from lightning_znorm import ZNorm
from tests.helpers import make_module, make_trainer, small_network

if __name__ == "__main__":
    package = {package!r}
    strategy = import_module(f"{{package}}.strategies").DDPStrategy(process_group_backend="gloo")
    torch.manual_seed(3)
    network = small_network()
    trainer = make_trainer(package, strategy=strategy, devices=2, max_steps=5, callbacks=[ZNorm()])
    trainer.fit(make_module(package, network, lambda p: torch.optim.Adam(p, lr=0.01), batch_size=4))
    torch.save(network.state_dict(), f"rank{{trainer.global_rank}}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("starter", ["test", pytest.param("lightning", marks=pytest.mark.long)])
def test_two_ranks_equal_one_process(package, starter):
    script = Path("train.py").absolute()
    script.write_text(SCRIPT.format(root=str(ROOT), package=package))
    for done in warm.run_ranks(script) if starter == "test" else [warm.run(script)]:
        assert done.returncode == 0, done.stderr
    ranks = [torch.load(f"rank{rank}.pt") for rank in (0, 1)]
    for name in ranks[0]:
        assert torch.equal(ranks[0][name], ranks[1][name]), name

    torch.manual_seed(3)
    network = small_network()
    trainer = make_trainer(package, max_steps=5, callbacks=[ZNorm()])
    # the sampler deals the samples out in turn, so that two batches of four are the one batch of eight
    trainer.fit(make_module(package, network, lambda p: torch.optim.Adam(p, lr=0.01), batch_size=8))
    for name, expected in network.state_dict().items():
        torch.testing.assert_close(ranks[0][name], expected, rtol=0, atol=1e-6)
    torch.manual_seed(3)
    untrained = small_network()
    assert not torch.equal(network[0].weight, untrained[0].weight)


SPAWN = """
from importlib import import_module
from pathlib import Path

import torch

from lightning_znorm import ZNorm

pl = import_module({package!r})
BoringModel = import_module({package!r} + ".demos.boring_classes").BoringModel


class Save(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        gradients = {{name: p.grad for name, p in pl_module.named_parameters()}}
        torch.save((pl_module.state_dict(), gradients), f"rank{{trainer.global_rank}}.pt")


if __name__ == "__main__":
    DDPStrategy = import_module({package!r} + ".strategies").DDPStrategy
    strategy = DDPStrategy(process_group_backend="gloo", start_method="spawn")
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_steps=3, limit_val_batches=0,
                         callbacks=[ZNorm(nonfinite="skip"), Save()], logger=False, enable_checkpointing=False)
    model = BoringModel()
    before = model.layer.weight.detach().clone()
    trainer.fit(model)
    assert not torch.equal(model.layer.weight, before)
"""


@pytest.mark.long
@pytest.mark.parametrize("package", PACKAGES)
def test_spawn(package):
    """The callback travels to the processes by pickle."""
    Path("spawn.py").write_text(SPAWN.format(package=package))
    done = warm.run("spawn.py")
    assert done.returncode == 0, done.stderr
    (first, gradients), (second, _) = (torch.load(f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(gradient.std(correction=0) == pytest.approx(1, abs=1e-4) for gradient in gradients.values())
