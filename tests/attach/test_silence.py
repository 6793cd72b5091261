"""`attach` never does nothing without a word: steps past the hook, steps that change nothing, no steps at all."""

import gc
import weakref

import pytest
import pytorch_optimizer
import torch
from timm.optim.lookahead import Lookahead

from lightning_znorm import ZNorm, attach
from lightning_znorm.errors import ZNormError
from tests.attach.helpers import backpropagate, sgd, stds
from tests.helpers import small_network


@pytest.fixture(autouse=True)
def _no_handles_of_other_tests():
    gc.collect()


def about_znorm(recwarn):
    return [str(warning.message) for warning in recwarn if "ZNorm" in str(warning.message)]


@pytest.mark.parametrize("make", [Lookahead, pytorch_optimizer.Lookahead], ids=["timm", "pytorch_optimizer"])
@pytest.mark.parametrize("zero_grad", ["optimizer", "network"])
def test_an_optimizer_whose_step_pytorch_has_not_wrapped_yet(make, zero_grad, recwarn):
    """A class of its own for each case: PyTorch wraps the `step` of a class once and for all."""
    network = small_network()
    optimizer = type("Fresh", (make,), {"step": lambda self, closure=None: make.step(self, closure)})(sgd(network))
    handle = attach(optimizer, ZNorm(), strict=True)
    for _ in range(3):
        backpropagate(network)
        optimizer.step()
        assert stds(network) == pytest.approx([1] * 4, abs=1e-3)
        {"optimizer": optimizer, "network": network}[zero_grad].zero_grad()
    assert handle.step == 3
    assert not about_znorm(recwarn)


def test_a_scheduler_has_wrapped_the_unprepared_step_before():
    class Unprepared(Lookahead):
        def step(self, closure=None):
            return super().step(closure)

    optimizer = Unprepared(sgd(small_network()))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(TypeError, match="If a learning-rate scheduler has wrapped its `step`, attach before"):
        attach(optimizer, ZNorm())


def two_half_steps(network, optimizer):
    backpropagate(network)
    optimizer.first_step(zero_grad=True)
    backpropagate(network)
    optimizer.second_step()


def test_half_steps_that_never_call_step(recwarn):
    network = small_network()
    sam = pytorch_optimizer.SAM(network.parameters(), torch.optim.SGD, lr=0.1)
    handle = attach(sam, ZNorm())
    for _ in range(2):
        two_half_steps(network, sam)
    assert handle.step == 0
    handle.remove()
    (message,) = about_znorm(recwarn)
    assert "was bypassed: `SGD` inside `SAM` made a step without `SAM.step`" in message
    assert "Attach to `optimizer.base_optimizer`." in message


def test_half_steps_are_refused_with_strict():
    network = small_network()
    sam = pytorch_optimizer.SAM(network.parameters(), torch.optim.SGD, lr=0.1)
    attach(sam, ZNorm(), strict=True)
    with pytest.raises(ZNormError, match=r"Attach to `optimizer\.base_optimizer`"):
        two_half_steps(network, sam)


def test_what_the_message_says_is_right(recwarn):
    network = small_network()
    sam = pytorch_optimizer.SAM(network.parameters(), torch.optim.SGD, lr=0.1)
    handle = attach(sam.base_optimizer, ZNorm(), strict=True)
    two_half_steps(network, sam)
    assert stds(network) == pytest.approx([1] * 4, abs=1e-3)
    assert handle.step == 1
    assert not about_znorm(recwarn)


def test_an_inner_optimizer_may_step_within_the_outer_step(recwarn):
    network = small_network()
    sam = pytorch_optimizer.SAM(network.parameters(), torch.optim.SGD, lr=0.1)
    attach(sam, ZNorm(), strict=True)
    backpropagate(network)

    def closure():
        network.zero_grad()
        return backpropagate(network)

    sam.step(closure)
    assert stds(network) == pytest.approx([1] * 4, abs=1e-3)
    assert not about_znorm(recwarn)


def drop(handle, optimizer, how):
    if how == "remove":
        handle.remove()
        handle.remove()
    elif how == "context":
        with handle:
            pass
    else:
        optimizer.clear()
        del handle
        gc.collect()


@pytest.mark.parametrize("how", ["remove", "context", "forget"])
@pytest.mark.parametrize(
    ("arguments", "steps", "message"),
    [
        ({}, 0, "`ZNorm`, attached to `SGD`, saw no step: `step\\(\\)` of this optimizer was not called"),
        ({"min_ndim": 5}, 2, "changed no gradient in 2 steps: .*`min_ndim` leave out every parameter"),
        ({"start_step": 9}, 2, "changed no gradient in 2 steps: none was inside `start_step` and `stop_step`"),
        ({"min_ndim": 2}, 2, None),
    ],
)
def test_a_handle_that_is_dropped_says_what_it_did_not_do(how, arguments, steps, message, recwarn):
    network = small_network()
    optimizers = [sgd(network)]
    handles = [attach(optimizers[0], ZNorm(**arguments))]
    for _ in range(steps):
        backpropagate(network)
        optimizers[0].step()
    drop(handles.pop(), optimizers, how)
    found = about_znorm(recwarn)
    assert len(found) == (message is not None)
    if message is not None:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(found[0])


def test_an_error_is_not_followed_by_a_warning(recwarn):
    network = small_network()
    optimizer = sgd(network)
    with pytest.raises(ZeroDivisionError), attach(optimizer, ZNorm()):
        raise ZeroDivisionError
    assert not about_znorm(recwarn)


@pytest.mark.parametrize("arguments", [{"min_ndim": 5}, {"exclude": "*"}])
def test_strict_refuses_the_first_step_that_would_do_nothing(arguments):
    network = small_network()
    optimizer = sgd(network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    handle = attach(optimizer, ZNorm(**arguments), network, strict=True)
    backpropagate(network)
    with pytest.raises(ZNormError, match="`ZNorm`, attached with `strict=True`, would change no gradient in step 0"):
        optimizer.step()
    assert all(map(torch.equal, before, network.parameters()))
    assert handle.step == 0


def test_strict_leaves_the_schedule_and_skips_alone(recwarn):
    network = small_network()
    optimizer = sgd(network)
    attach(optimizer, ZNorm(start_step=1, nonfinite="skip"), strict=True)
    for factor in (1.0, float("nan"), 1.0):
        optimizer.zero_grad()
        backpropagate(network, factor)
        optimizer.step()
    assert stds(network) == pytest.approx([1] * 4, abs=1e-3)
    assert ["skipped the optimizer step 1" in message for message in about_znorm(recwarn)] == [True]


class FailsOnce(torch.optim.SGD):
    failures = 1

    def step(self, closure=None):
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return super().step(closure)


def test_a_step_that_raises_is_not_counted():
    network = small_network()
    optimizer = FailsOnce(network.parameters(), lr=0.1)
    handle = attach(optimizer, ZNorm(stop_step=2))
    seen = []
    for _ in range(4):
        network.zero_grad()
        backpropagate(network)
        try:
            optimizer.step()
        except MemoryError:
            assert handle.step == 0
        seen.append(stds(network)[0] == pytest.approx(1, abs=1e-3))
    assert handle.step == 3
    assert seen == [True, True, True, False]


def test_skips_of_handles_count_for_the_transform():
    transform, networks = ZNorm(nonfinite="skip"), [small_network(), small_network()]
    optimizers = [sgd(network) for network in networks]
    handles = [attach(optimizer, transform) for optimizer in optimizers]
    for i, factor in ((0, float("nan")), (1, 1.0), (0, float("inf"))):
        optimizers[i].zero_grad()
        backpropagate(networks[i], factor)
        optimizers[i].step()
    assert [handle.skipped_steps for handle in handles] == [2, 0]
    assert transform.skipped_steps == 2


class Several(torch.optim.Optimizer):
    """Steps optimizers that it keeps in a container."""

    def __init__(self, network, container):
        parts = {name: torch.optim.SGD(network[name].parameters(), lr=0.1) for name in (0, 2)}
        self.parts = parts if container is dict else container(parts.values())
        super().__init__([*network.parameters()], {})

    def step_parts(self):
        for part in self.parts.values() if isinstance(self.parts, dict) else self.parts:
            part.step()

    def step(self, closure=None):
        self.step_parts()


@pytest.mark.parametrize(("container", "key"), [(list, 0), (tuple, 0), (dict, 0)])
def test_inner_optimizers_in_a_container_are_found(container, key):
    network = small_network()
    optimizer = Several(network, container)
    handle = attach(optimizer, ZNorm(), strict=True)
    backpropagate(network)
    optimizer.step()
    assert handle.step == 1
    with pytest.raises(ZNormError, match=rf"Attach to `optimizer\.parts\[{key}\]`"):
        optimizer.step_parts()


def test_half_steps_after_a_step_that_raised():
    network = small_network()
    sam = pytorch_optimizer.SAM(network.parameters(), torch.optim.SGD, lr=0.1)
    attach(sam, ZNorm(), strict=True)
    with pytest.raises(ZeroDivisionError):
        sam.step(lambda: 1 / 0)
    with pytest.raises(ZNormError, match=r"Attach to `optimizer\.base_optimizer`"):
        two_half_steps(network, sam)


def test_a_removed_handle_keeps_nothing_alive():
    network = small_network()
    optimizer = sgd(network)
    references = [weakref.ref(network), weakref.ref(optimizer)]
    handle = attach(optimizer, ZNorm(), network)
    backpropagate(network)
    optimizer.step()
    handle.remove()
    del network, optimizer
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert handle.step == 1


def test_removed_by_the_closure():
    network = small_network()
    optimizer = sgd(network)
    handle = attach(optimizer, ZNorm())
    optimizer.step(lambda: handle.remove() or backpropagate(network))
    assert stds(network) != pytest.approx([1] * 4, abs=0.1)
    assert handle.step == 0
