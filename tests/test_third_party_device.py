"""Any device that PyTorch knows: right results from standard operations, without waiting for it.

The device is `pretend`, which is registered in a process of each test.
"""

import contextlib
import copy
import io
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from lightning_znorm import GradientClipping, GradientMonitor, ZNorm, attach, centralize_, znorm_
from lightning_znorm.backends import reference
from lightning_znorm.doctor import examine
from lightning_znorm.functional import clip_gradients_
from tests import pretend
from tests.helpers import make_module, make_trainer, parameter, relative_error

SHAPES = [(), (5,), (64, 70), (300, 1000), (8, 3, 3, 3), (1, 4097)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(params=[True, False], ids=["float64", "no float64"], name="run")
def runner(request):
    """A function that runs another one in a process that has the device, with or without float64."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context, initializer=_register, initargs=(request.param,)) as executor:
        yield lambda function, *args: executor.submit(function, *args).result()


def _register(has_float64):
    pretend.register()
    pretend.has_float64 = has_float64
    torch.manual_seed(0)


@contextlib.contextmanager
def standard_operations_without_waiting():
    pretend.forget_operations()
    yield
    assert pretend.waits == []
    assert {operation.partition(".")[0] for operation in pretend.operations} == {"aten"}
    assert len(pretend.operations) > 20


def transform(function, twin, dtype, bound):
    gradients = [(torch.randn(shape, dtype=torch.float64) + 0.3).to(dtype) for shape in SHAPES]
    moved = [gradient.to(pretend.NAME) for gradient in gradients]
    parameters = [parameter(gradient) for gradient in moved]
    with standard_operations_without_waiting():
        function(parameters)
    expected = [gradient.double() for gradient in gradients]
    twin(expected)
    for result, exact in zip(moved, expected, strict=True):
        assert result.device.type == pretend.NAME
        assert relative_error(result.cpu(), exact.numpy()) < bound


def read_a_value():
    with standard_operations_without_waiting():
        torch.ones(30).to(pretend.NAME).sum().item()


def test_waiting_is_noticed(run):
    with pytest.raises(AssertionError):
        run(read_a_value)


def clip_(parameters):
    clip_gradients_([each.grad for each in parameters], max_norm=1.0)


def clip_exactly_(gradients):
    norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
    for gradient in gradients:
        gradient.div_(norm + 1e-6)


TRANSFORMS = {
    "znorm_": (znorm_, partial(reference.znorm_, eps=1e-10)),
    "without centring": (partial(znorm_, center=False), partial(reference.znorm_, eps=1e-10, center=False)),
    "centralize_": (centralize_, reference.centralize_),
    "clipping": (clip_, clip_exactly_),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(run, name, dtype, request):
    if dtype == torch.float64 and "no float64" in request.node.name:
        pytest.skip("there are no such gradients")
    # a norm is as exact as the device computes it
    bound = max(TOLERANCE[dtype], 1e-5) if name == "clipping" else TOLERANCE[dtype]
    run(transform, *TRANSFORMS[name], dtype, bound)


def train(device, steps=3):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    attach(optimizer, ZNorm())
    for _ in range(steps):
        optimizer.zero_grad()
        inputs, weights = (torch.randn(16, size).to(device) for size in (20, 4))
        (network(inputs) * weights).mean().backward()
        if device == pretend.NAME:
            with standard_operations_without_waiting():
                optimizer.step()
        else:
            optimizer.step()
    return [each.detach().cpu() for each in network.parameters()]


def compare_trainings():
    for result, expected in zip(train(pretend.NAME), train("cpu"), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_attach(run):
    run(compare_trainings)


def on_the_device():
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Accelerator(pl.accelerators.Accelerator):
        """Of the device, as its maker would write it."""

        @staticmethod
        def setup_device(device):
            pass

        def teardown(self):
            pass

        @staticmethod
        def parse_devices(devices):
            return devices

        @staticmethod
        def get_parallel_devices(devices):
            return [torch.device(pretend.NAME, 0)]

        @staticmethod
        def auto_device_count():
            return 1

        @staticmethod
        def is_available():
            return True

        @staticmethod
        def name():
            return pretend.NAME

        def get_device_stats(self, device):
            return {}

    return {"accelerator": Accelerator(), "strategy": SingleDeviceStrategy(torch.device(pretend.NAME, 0))}


def fit(module, callbacks, **options):
    torch.manual_seed(0)
    make_trainer(callbacks=callbacks, **options).fit(module)
    return [each.detach().cpu() for each in module.parameters()]


def compare_trainers(callbacks):
    module = make_module()
    twin = copy.deepcopy(module)
    found = fit(module, [make() for make in callbacks], max_epochs=2, **on_the_device())
    expected = fit(twin, [make() for make in callbacks], max_epochs=2)
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-5)


CALLBACKS = {
    "znorm": [partial(ZNorm, log_stats="layers"), partial(GradientMonitor, every_n_steps=1)],
    "skips": [partial(ZNorm, nonfinite="skip")],
    "clipping": [partial(GradientClipping, max_norm=0.1)],
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_trainer(run, name):
    run(compare_trainers, CALLBACKS[name])


def count_transfers(steps):
    waits = []
    for callbacks in ([], [GradientMonitor("layers", every_n_steps=4)]):
        pretend.forget_operations()
        fit(make_module(), callbacks, max_steps=steps, **on_the_device())
        waits.append(Counter(pretend.waits))
    without, with_monitor = waits
    return dict(with_monitor - without)


@pytest.mark.parametrize("steps", [1, 4])
def test_one_transfer_per_recorded_step_of_the_monitor_and_none_in_others(run, steps, request):
    # without float64, the four gradients are copied to the CPU twice
    transfers = 8 if "no float64" in request.node.name else 1
    assert run(count_transfers, steps) == ({"_copy_from": transfers} if steps == 4 else {})


def run_the_doctor():
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        status = examine()
    return status, page.getvalue()


def test_the_doctor(run):
    status, page = run(run_the_doctor)
    assert status == 0, page
    (line,) = (number for number, line in enumerate(page.splitlines()) if line.startswith(f"{pretend.NAME}:0"))
    assert page.splitlines()[line + 1].split() == ["float32", "generic", "right"]
