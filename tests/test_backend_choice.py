"""Which backend a device gets: Triton where it works, `generic` with a warning where it fails, on all ranks alike."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

from lightning_znorm import centralize_, doctor, znorm_
from lightning_znorm.backends import checking, choice, reference, triton
from lightning_znorm.backends.checking import find_fault
from lightning_znorm.errors import ArgumentValueError
from tests import warm
from tests.helpers import parameter

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy in the interpreter


FEW_SHAPES = ((1,), (5,), (9, 9), (3, 200))  # the interpreter takes seconds for more


@pytest.fixture(autouse=True)
def triton_for_the_cpu(monkeypatch):
    """A CPU that may use Triton, as CUDA may, with nothing known about it yet."""
    monkeypatch.setattr(choice, "may_use_triton", lambda device: True)
    monkeypatch.setattr(doctor, "may_use_triton", lambda device: True)
    monkeypatch.setattr(choice, "_has_own_backend", lambda device: False)
    monkeypatch.setattr(choice, "_obstacles", {})
    monkeypatch.setattr(checking, "_SHAPES", FEW_SHAPES)


def name_of_choice(*dtypes):
    return choice.choose([torch.ones(3, dtype=dtype) for dtype in dtypes or (torch.float32,)]).name


def test_triton_is_taken_where_it_is_right():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert name_of_choice() == "triton"
        assert name_of_choice(torch.float32, torch.float64) == "triton"


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def edit_wrongly(gradients, *args, **kwargs):
    stats = reference.znorm_(gradients, *args, **kwargs)
    gradients[-1].view(-1)[7] += 0.01
    return stats


FAILURES = {
    "no driver": fail_with(RuntimeError("0 active drivers ([]). There should only be one.")),
    "read-only cache": fail_with(PermissionError(13, "Permission denied", "/home/me/.triton")),
    "no compiler": fail_with(RuntimeError("Failed to find C compiler. Please specify via CC")),
    "broken library": fail_with(ImportError("libtriton.so: version `GLIBC_2.34' not found")),
    "wrong result": edit_wrongly,
}


def break_measure(backend, gradients):
    moments = backend.measure(gradients)
    return replace(moments, squares=moments.squares * 1.001)


def break_apply(backend, gradients, mean, factor):
    backend.apply_(gradients, mean, factor * 1.05)


def break_znorm(backend, gradients, *args, **kwargs):
    stats = backend.znorm_(gradients, *args, **kwargs)
    gradients[-1].mul_(1.05)
    return stats


def break_stats(backend, gradients, *args, **kwargs):
    stats = backend.centralize_(gradients, *args, **kwargs)
    stats[1, -1] *= 1.001
    return stats


@pytest.mark.parametrize(
    ("name", "function", "what"),
    [
        ("measure", break_measure, "the statistics of `measure and apply_`"),
        ("apply_", break_apply, "the results of `measure and apply_`"),
        ("znorm_", break_znorm, "the results of `znorm_`"),
        ("centralize_", break_stats, "the statistics of `centralize_`"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_faults_are_found(name, function, what, dtype):
    for backend in (choice.CPU, choice.GENERIC):
        assert find_fault(backend, torch.device("cpu"), dtype) is None
        broken = replace(backend, **{name: partial(function, backend)})
        assert find_fault(broken, torch.device("cpu"), dtype) == f"{what} are wrong"


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_end_in_one_warning_and_right_gradients(failure, monkeypatch):
    monkeypatch.setattr(triton, "znorm_", FAILURES[failure])
    choice.load_triton.cache_clear()
    gradient = torch.randn(50)
    expected = gradient.clone()
    reference.znorm_([expected], 1e-10)
    with pytest.warns(UserWarning, match="Triton is not used on cpu for torch.float32") as caught:
        znorm_(parameter(gradient))
    torch.testing.assert_close(gradient, expected)
    (message,) = [str(each.message) for each in caught if each.category is UserWarning]
    assert "wrong" in message if failure == "wrong result" else type_of(failure) in message
    assert "TRITON_CACHE_DIR" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert name_of_choice() == "generic"
        centralize_(parameter(torch.randn(4, 5)))
    choice.load_triton.cache_clear()


def type_of(failure):
    return {"read-only cache": "PermissionError", "broken library": "ImportError"}.get(failure, "RuntimeError")


def test_triton_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_znorm.backends.triton", None)
    choice.load_triton.cache_clear()
    with pytest.warns(UserWarning, match="ModuleNotFoundError|ImportError"):
        assert name_of_choice() == "generic"
    choice.load_triton.cache_clear()


@pytest.mark.parametrize(("capability", "taken"), [((6, 1), "generic"), ((7, 0), "triton")])
def test_old_capability(capability, taken, monkeypatch):
    monkeypatch.setattr(choice, "_capability_of", lambda device: capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assert name_of_choice() == taken
    assert ["capability 7.0" in str(each.message) for each in caught] == [True] * (taken == "generic")


def test_a_first_use_inside_a_capture_takes_the_generic_way(monkeypatch):
    monkeypatch.setattr(choice, "is_capturing", lambda: True)
    assert name_of_choice() == "generic"
    monkeypatch.setattr(choice, "is_capturing", lambda: False)
    assert name_of_choice() == "triton"
    monkeypatch.setattr(choice, "is_capturing", lambda: True)
    assert name_of_choice() == "triton"


@pytest.mark.parametrize("name", ["generic", "triton", "reference"])
def test_forced(name, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, name)
    monkeypatch.setattr(choice, "find_fault", None)  # without a check
    assert name_of_choice() == name


def test_forced_to_what_does_not_exist(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "cuda")
    with pytest.raises(ArgumentValueError, match=r"LIGHTNING_ZNORM_BACKEND.*one of 'generic', 'reference', 'triton'"):
        name_of_choice()


RANK = """
import json, os, sys, warnings
import torch
import torch.distributed as dist
from lightning_znorm import ZNorm, attach
from lightning_znorm.backends import checking, choice, triton
from lightning_znorm.engine import pipeline
FEW_SHAPES = ((1,), (5,), (9, 9), (3, 200))

rank = int(os.environ["LOCAL_RANK"])
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=2)
choice.may_use_triton = pipeline.may_use_triton = lambda device: True
choice._has_own_backend = lambda device: False
checking._SHAPES = FEW_SHAPES

if rank == 1:
    triton.measure_kernel = triton.conclude_kernel = triton.apply_kernel = None
weight = torch.nn.Parameter(torch.zeros(40))
weight.grad = torch.linspace(-1, 2, 40)
optimizer = torch.optim.SGD([weight], lr=0.1)
attach(optimizer, ZNorm(nonfinite=sys.argv[1]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    if sys.argv[1] == "skip" or rank == 0:  # otherwise, ranks may step on their own
        optimizer.step()
total = torch.tensor(rank + 1)
dist.all_reduce(total)  # not paired with another one
said = [str(each.message) for each in caught if "Triton is not used" in str(each.message)]
print(json.dumps([choice.choose([weight.grad]).name, weight.grad.tolist(), said, int(total)]))
dist.destroy_process_group()
"""


def run_two(script):
    done = warm.run_ranks(script)
    assert all(each.returncode == 0 for each in done), done
    return [json.loads(each.stdout.splitlines()[-1]) for each in done]


@pytest.mark.slow
def test_ranks_that_may_step_on_their_own_decide_on_their_own(tmp_path):
    """Waiting for a rank that makes no step would have no end."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("sys.argv[1]", "'propagate'"))
    first, second = run_two(script)
    assert [first[0], second[0]] == ["triton", "generic"]
    assert first[3] == second[3] == 3


def agree(kinds, minimum=None):
    """As a rank whose vote is the minimum, or beside others."""
    parameters = [torch.nn.Parameter(torch.zeros(4, dtype=dtype)) for dtype in kinds]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choice.agree(parameters, lambda works: works if minimum is None else minimum)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("name", ["generic", "triton"])
def test_a_forced_backend_is_neither_checked_nor_changed_by_other_ranks(name, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, name)
    monkeypatch.setattr(choice, "find_fault", None)
    assert agree([torch.float32], minimum=0) == []
    assert name_of_choice() == name


def test_all_ranks_agree_for_each_dtype(monkeypatch):
    kinds = [torch.float32, torch.bfloat16]
    for is_broken in (False, True):
        choice._obstacles.clear()
        fault = "broken" if is_broken else None
        monkeypatch.setattr(choice, "find_fault", lambda *args, fault=fault: fault if args[2] in kinds[1:] else None)
        assert len(agree(kinds, minimum=0)) == 1
        assert name_of_choice(torch.float32) == "generic"
        assert name_of_choice(torch.bfloat16) == "generic"


def test_a_lack_of_memory_is_not_for_ever(monkeypatch):
    def lack(*_):
        raise torch.OutOfMemoryError

    check = choice.find_fault
    monkeypatch.setattr(choice, "find_fault", lack)
    assert name_of_choice() == "generic"
    monkeypatch.setattr(choice, "find_fault", check)
    assert name_of_choice() == "triton"


@pytest.mark.slow
def test_ranks_agree(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("sys.argv[1]", "'skip'"))
    first, second = run_two(script)
    assert first[0] == second[0] == "generic"
    assert first[1] == second[1]
    assert first[3] == second[3] == 3
    assert len(first[2]) == len(second[2]) == 1
    assert "another" in first[2][0]
    assert "TypeError" in second[2][0]


def test_a_shared_gradient_is_edited_once():
    one, two, other = (torch.nn.Parameter(torch.zeros(5)) for _ in range(3))
    one.grad = two.grad = torch.arange(5.0)
    other.grad = torch.arange(5.0) ** 2
    stats = znorm_([one, other, two], eps=1.0)  # a second edit would divide by 1.5 again
    expected = torch.arange(5.0)
    reference.znorm_([expected], 1.0)
    torch.testing.assert_close(one.grad, expected)
    assert stats.mean.tolist() == [2.0, 6.0, 2.0]


def run_doctor(**environment):
    return subprocess.run(
        [sys.executable, "-m", "lightning_znorm", "doctor"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_doctor():
    done = run_doctor()
    assert done.returncode == 0
    assert "float32   cpu        right" in done.stdout
    assert "Every gradient is right." in done.stdout
    wrong = run_doctor(LIGHTNING_ZNORM_BACKEND="tritn")
    assert wrong.returncode == 2
    assert "one of 'generic', 'reference', 'triton'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_doctor_sees_a_wrong_gradient(monkeypatch, capsys):
    monkeypatch.setattr(triton, "znorm_", edit_wrongly)
    choice.load_triton.cache_clear()
    assert doctor.examine() == 0  # `generic` takes its place
    assert "generic    right (Triton is not used: the results of `znorm_` are wrong)" in capsys.readouterr().out
    monkeypatch.setenv(choice.VARIABLE, "triton")
    assert doctor.examine() == 1
    assert "WRONG: the results of `znorm_` are wrong" in capsys.readouterr().out
    choice.load_triton.cache_clear()
