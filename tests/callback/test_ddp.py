"""Two real processes under gloo: bit-identical ranks, and the training of one process on the joined batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_znorm import ZNorm
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
    package, options = {package!r}, {options!r}
    strategy = import_module(f"{{package}}.strategies").DDPStrategy(process_group_backend="gloo", **options)
    torch.manual_seed(3)
    network = small_network()
    trainer = make_trainer(package, strategy=strategy, devices=2, max_steps=5, callbacks=[ZNorm(min_ndim={min_ndim})],
                           precision={precision!r})
    trainer.fit(make_module(package, network, lambda p: torch.optim.Adam(p, lr=0.01), batch_size=4))
    torch.save(network.state_dict(), f"rank{{trainer.global_rank}}.pt")
"""


def train_on_two_ranks(package="lightning.pytorch", precision="32-true", min_ndim=0, **options):
    script = Path("train.py")
    script.write_text(
        SCRIPT.format(root=str(ROOT), package=package, options=options, precision=precision, min_ndim=min_ndim)
    )
    done = subprocess.run(
        [sys.executable, str(script.absolute())], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "options"),
    [
        (PACKAGES[0], {}),
        (PACKAGES[1], {}),
        (PACKAGES[0], {"gradient_as_bucket_view": True, "precision": "bf16-mixed"}),
        (PACKAGES[0], {"gradient_as_bucket_view": True, "static_graph": True, "min_ndim": 2}),
    ],
)
def test_two_ranks_equal_one_process(package, options):
    ranks = train_on_two_ranks(package, **options)
    for name in ranks[0]:
        assert torch.equal(ranks[0][name], ranks[1][name]), name

    torch.manual_seed(3)
    network = small_network()
    precision = options.get("precision", "32-true")
    trainer = make_trainer(
        package, max_steps=5, callbacks=[ZNorm(min_ndim=options.get("min_ndim", 0))], precision=precision
    )
    # the sampler deals the samples out in turn, so that two batches of four are the one batch of eight
    trainer.fit(make_module(package, network, lambda p: torch.optim.Adam(p, lr=0.01), batch_size=8))
    bound = 1e-6 if precision == "32-true" else 2e-2
    for name, expected in network.state_dict().items():
        torch.testing.assert_close(ranks[0][name], expected, rtol=0, atol=bound)
    torch.manual_seed(3)
    untrained = small_network()
    assert not torch.equal(network[0].weight, untrained[0].weight)
