"""Each method of `compare` in every precision and mode, resumed and distributed: as by hand."""

from importlib import import_module

import pytest
import torch

from lightning_znorm import attach
from lightning_znorm.compare.question.methods import METHODS
from tests.callback.test_ddp_modes import assert_ranks_equal_one_process
from tests.helpers import (
    centralize_by_numpy,
    make_module,
    make_trainer,
    normalize_by_numpy,
    precision_arguments,
    small_data,
    small_network,
)

CLIP = 0.05
ARGUMENTS = {"clip": {"max_norm": CLIP}}
pytestmark = pytest.mark.parametrize("method", METHODS)


def make(method):
    class_path, arguments = METHODS[method]
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)(**arguments, **ARGUMENTS.get(method, {}))


def parameters_of(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_by_hand(optimizer):
    torch.nn.utils.clip_grad_norm_(parameters_of(optimizer), CLIP)


def centralize_by_hand(optimizer):
    for parameter in parameters_of(optimizer):
        parameter.grad.copy_(torch.from_numpy(centralize_by_numpy(parameter.grad).astype("float64")))


def scale_by_hand(optimizer):
    for parameter in parameters_of(optimizer):
        exact = parameter.grad.double()
        parameter.grad.copy_(exact / (exact.square().mean().sqrt() + 1e-10))


BY_HAND = {"clip": clip_by_hand, "gc": centralize_by_hand, "scale": scale_by_hand, "znorm": normalize_by_numpy}


def train(callback=None, by_hand=None, manual=False, **arguments):
    torch.manual_seed(0)
    module = make_module()
    if by_hand is not None:
        module.on_before_optimizer_step = BY_HAND[by_hand]
    if manual:
        module.automatic_optimization = False

        def training_step(batch, batch_idx):
            optimizer = module.optimizers()
            optimizer.zero_grad()
            module.manual_backward(torch.nn.functional.mse_loss(module.network(batch[0]), batch[1]))
            optimizer.step()

        module.training_step = training_step
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = make_trainer(callbacks=[] if callback is None else [callback], **{"max_steps": 6, **arguments})
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true"])
def test_precisions(method, precision):
    trained = [
        train(*way, **precision_arguments("lightning.pytorch", precision))[1]
        for way in ([make(method)], [None, method])
    ]
    bound = 2e-2 if precision == "bf16-true" else 1e-5
    torch.testing.assert_close(*trained, rtol=bound, atol=bound)


@pytest.mark.parametrize("mode", [{"accumulate_grad_batches": 3}, {"manual": True}], ids=["accumulation", "manual"])
def test_modes(method, mode):
    trained = train(make(method), **mode)[1], train(by_hand=method, **mode)[1]
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-6)


def test_it_makes_a_difference(method):
    assert (train(make(method))[1] - train()[1]).abs().max() > 1e-3


def test_resumed(method):
    _, straight = train(make(method), max_steps=-1, max_epochs=2)
    trainer, _ = train(make(method), max_steps=-1, max_epochs=1)
    trainer.save_checkpoint("model.ckpt")
    _, resumed = train(make(method), max_steps=-1, max_epochs=2, ckpt_path="model.ckpt")
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


@pytest.mark.slow
def test_two_ranks_equal_one_process(method):
    assert_ranks_equal_one_process(callback=make(method))


def test_attached(method):
    _, in_a_trainer = train(make(method))
    torch.manual_seed(0)
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    handle = attach(optimizer, make(method), strict=True)
    for batch in list(torch.utils.data.DataLoader(small_data(), batch_size=4))[:6]:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(batch[0]), batch[1]).backward()
        optimizer.step()
    assert handle.step == 6
    attached = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    torch.testing.assert_close(attached, in_a_trainer, rtol=1e-6, atol=1e-7)


def test_none_is_none(method):
    """Switched off it is not there."""
    transform = make(method)
    transform.enabled = False
    assert torch.equal(train(transform)[1], train()[1])
