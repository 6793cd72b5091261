"""`attach` to what `accelerator.prepare` returns, against the same training by hand."""

from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import nn
from torch.utils.data import DataLoader

from lightning_znorm import ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.attach.helpers import sgd, stds
from tests.helpers import normalize_by_numpy, small_data, small_network


@pytest.fixture(autouse=True)
def _no_state_of_other_tests():
    """Also of other files, which processes that are forked would inherit."""
    forget_state()
    yield
    forget_state()


def forget_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_accelerator(precision="no", accumulation=1, scale=None):
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulation)
    if precision == "fp16":  # which accelerate itself switches on for accelerators only
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
    return accelerator


def train(accelerator, clip=None, poisoned=None, **options):
    """The loop of accelerate's documentation, with one more line; returns the network and the handle."""
    network = small_network()
    loader = DataLoader(small_data(), batch_size=4)
    model, optimizer, loader = accelerator.prepare(network, sgd(network, **options), loader)
    handle = attach(optimizer, ZNorm())
    for number, (inputs, targets) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss * torch.inf if number == poisoned else loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            # a fused optimizer's step is called, and skips by itself
            assert accelerator.optimizer_step_was_skipped == (number == poisoned and not options.get("fused"))
            optimizer.zero_grad()
    return network, handle


def train_by_hand(dtype=None, accumulation=1, clip=None, poisoned=None):
    network = small_network()
    optimizer = sgd(network)
    batches = list(DataLoader(small_data(), batch_size=4))
    for number, (inputs, targets) in enumerate(batches):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            outputs = network(inputs)
        (nn.functional.mse_loss(outputs.float(), targets) / accumulation).backward()
        if (number + 1) % accumulation and number + 1 < len(batches):
            continue
        if number != poisoned:
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            normalize_by_numpy(optimizer)
            optimizer.step()
        optimizer.zero_grad()
    return network


def assert_equally_trained(network, expected, start, bound=1e-5):
    """The difference, over the length of the way from the start."""
    flat = [
        nn.utils.parameters_to_vector(one.parameters()).detach().double().numpy() for one in (network, expected, start)
    ]
    assert np.linalg.norm(flat[1] - flat[2]) > 0.1
    assert np.linalg.norm(flat[0] - flat[1]) < bound * np.linalg.norm(flat[1] - flat[2])


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("accumulation", "steps"), [(1, 10), (3, 4)])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_training_is_that_by_hand(precision, accumulation, steps, clip):
    accelerator = make_accelerator(precision, accumulation)
    torch.manual_seed(0)
    start = small_network()
    torch.manual_seed(0)
    network, handle = train(accelerator, clip)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else None
    # a last digit of a weight may turn an activation's rounding to bfloat16
    bound = 1e-2 if precision == "bf16" else 1e-5
    assert_equally_trained(network, train_by_hand(dtype, accumulation, clip), start, bound)
    assert handle.step == steps


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_scaler_makes_no_difference_but_for_the_step_that_it_skips(kind, clip):
    torch.manual_seed(0)
    start = small_network()
    torch.manual_seed(0)
    network, handle = train(make_accelerator("fp16", scale=1024.0), clip, poisoned=4, **kind)
    torch.manual_seed(0)
    # float16 activations leave other rounding noise in small gradients where the loss is scaled
    assert_equally_trained(network, train_by_hand(torch.float16, clip=clip, poisoned=4), start, bound=1e-2)
    assert handle.step == (10 if kind.get("fused") else 9)


def test_the_prepared_optimizer_has_one_only():
    network = small_network()
    optimizer = sgd(network)
    prepared = make_accelerator().prepare(optimizer)
    handle = attach(prepared, ZNorm())
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    for same in (prepared, optimizer):
        with pytest.raises(MisconfigurationError, match="`ZNorm` is attached to the optimizer `SGD` already"):
            attach(same, ZNorm())
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("compiled", [False, True])
def test_exclude_by_the_names_of_the_module_itself(compiled):
    accelerator = make_accelerator(precision="bf16")
    network = small_network()
    module = torch.compile(network, backend="eager") if compiled else network
    model, optimizer = accelerator.prepare(module, sgd(network))
    attach(optimizer, ZNorm(exclude="0.*"), model)
    accelerator.backward(model(torch.randn(4, 6)).square().mean())
    optimizer.step()
    assert [std == pytest.approx(1, abs=1e-4) for std in stds(network)] == [False, False, True, True]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "XLA", "MEGATRON_LM"])
def test_where_gradients_are_elsewhere(kind):
    optimizer = make_accelerator().prepare(sgd(small_network()))
    if kind == "DEEPSPEED":
        optimizer = DeepSpeedOptimizerWrapper(optimizer.optimizer)
    optimizer.accelerator_state = SimpleNamespace(distributed_type=DistributedType(kind))
    with pytest.raises(MisconfigurationError, match=rf"accelerate's `DistributedType\.{kind}`.*DDP.*enabled=False"):
        attach(optimizer, ZNorm())
    attach(optimizer, ZNorm(enabled=False))


def test_a_precision_of_8_bits():
    optimizer = make_accelerator().prepare(sgd(small_network()))
    optimizer.accelerator_state = SimpleNamespace(distributed_type=DistributedType.NO, mixed_precision="fp8")
    with pytest.raises(MisconfigurationError, match=r"accelerate's `mixed_precision='fp8'`.*enabled=False"):
        attach(optimizer, ZNorm())


def train_on_one_of_two_processes(out):
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.distributed_type is DistributedType.MULTI_CPU
    torch.manual_seed(0)
    network = small_network()
    loader = DataLoader(small_data(), batch_size=2)
    model, optimizer, loader = accelerator.prepare(network, sgd(network), loader)
    assert model is not network
    attach(optimizer, ZNorm(exclude="2.bias", nonfinite="skip"), model)
    for inputs, targets in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
        optimizer.step()
    torch.save(network.state_dict(), f"{out}/{accelerator.process_index}.pt")


@pytest.mark.slow
def test_two_processes(tmp_path):
    accelerate.debug_launcher(train_on_one_of_two_processes, (str(tmp_path),), num_processes=2)
    networks = []
    for rank in (0, 1):
        networks.append(small_network())
        networks[-1].load_state_dict(torch.load(tmp_path / f"{rank}.pt"))
    assert all(torch.equal(*pair) for pair in zip(*(one.parameters() for one in networks), strict=True))
    torch.manual_seed(0)
    start = small_network()
    torch.manual_seed(0)
    expected = small_network()
    optimizer = sgd(expected)
    for inputs, targets in DataLoader(small_data(), batch_size=4):
        optimizer.zero_grad()
        nn.functional.mse_loss(expected(inputs), targets).backward()
        bias = expected[2].bias.grad.clone()
        normalize_by_numpy(optimizer)
        expected[2].bias.grad.copy_(bias)
        optimizer.step()
    assert_equally_trained(networks[0], expected, start)
