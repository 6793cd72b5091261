"""Arguments of the callbacks: what is refused, with which words, and what they are kept as."""

import copy
import inspect
import pickle
from typing import get_type_hints

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from torch import nn

from lightning_znorm import GradientCentralization, GradientMonitor, ZNorm
from tests.helpers import small_network


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("eps", 0),
        ("eps", -1e-8),
        ("eps", float("nan")),
        ("eps", True),
        ("eps", "small"),
        ("min_ndim", -1),
        ("min_ndim", 1.5),
        ("min_ndim", True),
        ("start_step", -1),
        ("start_step", True),
        ("stop_step", 0),
        ("stop_step", True),
        ("max_skips", False),
        ("log_stats", "everything"),
        ("log_stats", True),
    ],
)
def test_wrong_arguments(argument, value):
    with pytest.raises(ValueError, match=f"Expected argument `{argument}` to be"):
        ZNorm(**{argument: value})


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (5, 4)])
def test_stop_step_must_come_after_start_step(start, stop):
    with pytest.raises(ValueError, match=rf"`stop_step` .* larger than `start_step` \({start}\), but got {stop}"):
        ZNorm(start_step=start, stop_step=stop)


@pytest.mark.parametrize("argument", ["eps", "min_ndim", "stop_step", "max_skips", "nonfinite", "log_stats"])
def test_an_error_names_the_type_of_a_network_only(argument):
    with pytest.raises(
        ValueError, match=rf"^Expected argument `{argument}`.*got an object of type `Sequential`\.[^\n]*$"
    ):
        ZNorm(**{argument: small_network()})


@pytest.mark.parametrize("make", [ZNorm, GradientCentralization, GradientMonitor])
@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (3, "but got 3"),
        (None, "but got None"),
        (nn.Linear(2, 2), "but got an object of type `Linear`"),
        (["*.bias", 3], r"but `exclude\[1\]` is 3"),
        (small_network(), r"but `exclude\[0\]` is an object of type `Linear`"),
        (list(small_network().named_parameters()), r"but `exclude\[0\]` is an object of type `tuple`"),
    ],
    ids=["number", "None", "module", "number in a list", "iterable module", "named parameters"],
)
def test_exclude_that_is_no_pattern(make, exclude, message):
    with pytest.raises(TypeError, match=rf"^Expected argument `exclude` to be a pattern or a list of .*, {message}\.$"):
        make(exclude=exclude)


class WithOptions(ZNorm):
    def __init__(self, beta=0.5, **options):
        super().__init__(**options)
        self.beta = beta


class WithoutInit(GradientCentralization):
    pass


@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [
        (ZNorm, "min_dim", "min_ndim"),
        (ZNorm, "epsilon", "eps"),
        (WithOptions, "min_dim", "min_ndim"),
        (WithoutInit, "exclud", "exclude"),
        (GradientCentralization, "non_finite", "nonfinite"),
        (GradientMonitor, "every_n_step", "every_n_steps"),
    ],
)
def test_an_unknown_argument_with_the_one_that_is_meant(make, wrong, right):
    message = f"^`{make.__name__}` has no argument `{wrong}`. Did you mean '{right}'. Its arguments are .*{right}.*$"
    with pytest.raises(TypeError, match=message):
        make(**{wrong: 1})


def test_an_unknown_argument_like_no_other():
    with pytest.raises(
        TypeError, match=r"^`ZNorm` has no argument `xyz`\. Its arguments are eps, exclude, .*enabled\.$"
    ):
        ZNorm(xyz=1)


def test_known_arguments_remain_what_tools_see():
    assert list(inspect.signature(ZNorm).parameters)[:4] == ["eps", "exclude", "min_ndim", "center"]
    assert inspect.signature(GradientMonitor).parameters["near_zero"].default == 1e-8
    assert get_type_hints(ZNorm.__init__)["stop_step"] == int | None
    for make in (ZNorm, WithOptions, GradientCentralization, GradientMonitor):
        callback = make(exclude=["*.bias"], enabled=False)
        for clone in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
            assert (clone.exclude, clone.enabled) == (("*.bias",), False)
    assert WithOptions(beta=2, min_ndim=1).min_ndim == 1


def test_the_command_line_sees_the_arguments_of_subclasses():
    parser = ArgumentParser()
    parser.add_subclass_arguments(ZNorm, "callback")
    name = f"{__name__}.WithOptions"
    config = parser.parse_args([f"--callback={name}", "--callback.beta=2", "--callback.min_ndim=1"])
    callback = parser.instantiate(parser.parse_string(parser.dump(config))).callback
    assert (type(callback).__name__, callback.beta, callback.min_ndim) == ("WithOptions", 2, 1)


def test_numbers_of_numpy_are_kept_as_those_of_python():
    znorm = ZNorm(np.float32(1e-8), min_ndim=np.int64(2), start_step=np.int32(1), stop_step=np.uint8(4))
    assert repr(znorm).startswith(
        f"ZNorm(eps={float(np.float32(1e-8))!r}, exclude=(), min_ndim=2, center=True, start_step=1,"
    )
    for value in (znorm.eps, znorm.min_ndim, znorm.start_step, znorm.stop_step):
        assert type(value) in (int, float)
