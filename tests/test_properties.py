"""Properties of the z-score for gradients whose standard deviation is at least 1e6 eps."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_znorm import znorm_
from lightning_znorm.backends import cpu, generic
from tests.helpers import parameter, relative_error, znorm_by_numpy

EPS = 1e-10

gradients = hnp.arrays(
    "float64",
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=12),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False),
).map(torch.from_numpy)
everything = settings(max_examples=60, deadline=None)


def znormed(gradient):
    assume(gradient.numel() > 1)
    std = gradient.std(correction=0)
    assume(std >= 1e6 * EPS)
    assume(std >= 1e-3 * gradient.abs().max())
    result = gradient.clone()
    znorm_(parameter(result), eps=EPS)
    return result


@everything
@given(gradients)
def test_mean_is_zero_and_std_is_one(gradient):
    result = znormed(gradient)
    assert abs(result.mean()) < 1e-9
    assert abs(result.std(correction=0) - 1) < 2e-6


@everything
@given(gradients, st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_invariant_to_scale_and_shift(gradient, scale, shift):
    other = gradient * scale + shift * scale * gradient.std(correction=0)
    # eps shrinks each of the two by up to 1e-6
    torch.testing.assert_close(znormed(other), znormed(gradient), rtol=3e-6, atol=1e-5)


@everything
@given(gradients)
def test_odd(gradient):
    torch.testing.assert_close(znormed(-gradient), -znormed(gradient), rtol=0, atol=1e-9)


@everything
@given(gradients)
def test_idempotent(gradient):
    once = znormed(gradient)
    torch.testing.assert_close(znormed(once), once, rtol=3e-6, atol=1e-5)


@everything
@given(gradients)
def test_descent_direction(gradient):
    """The inner product of g and its z-score is d std^2 / (std + eps), hence the cosine is positive."""
    result = znormed(gradient)
    std = gradient.std(correction=0)
    inner = (gradient * result).sum()
    assert inner > 0
    torch.testing.assert_close(inner, gradient.numel() * std**2 / (std + EPS), rtol=1e-6, atol=0)


@everything
@given(gradients, gradients)
def test_each_gradient_by_itself(first, second):
    """Neither the neighbours in the list nor their order matter."""
    alone = znormed(first)
    together, neighbour = first.clone(), second.clone()
    znorm_([parameter(neighbour), parameter(together)], eps=EPS)
    assert torch.equal(together, alone)


@everything
@given(gradients, st.integers(0, 5), st.integers(0, 5))
def test_untouched_outside_of_the_gradient(gradient, left, right):
    """A gradient that is a view into a bucket leaves the rest of the bucket alone."""
    bucket = torch.full((left + gradient.numel() + right,), 7.0, dtype=torch.float64)
    view = bucket[left : left + gradient.numel()].view(gradient.shape)
    view.copy_(gradient)
    znorm_(parameter(view), eps=EPS)
    assert (bucket[:left] == 7).all()
    assert (bucket[left + gradient.numel() :] == 7).all()


@pytest.mark.parametrize("backend", [cpu, generic], ids=["cpu", "generic"])
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(1, 4000)),
        min_size=2,
        max_size=4,
    ),
    st.booleans(),
)
def test_runs_of_equal_values(backend, runs, is_mixed):
    """A few finite values, each many times, in runs or mixed: rounded the same way each time they are added."""
    gradient = torch.cat([torch.full((count,), value) for value, count in runs])
    if is_mixed:
        gradient = gradient[torch.randperm(len(gradient), generator=torch.Generator().manual_seed(0))]
    exact = gradient.double()
    mean, std = exact.mean().item(), exact.std(correction=0).item()
    assume(std >= 1e-39)
    expected = znorm_by_numpy(gradient, 1e-10 * std)
    stats = backend.znorm_([gradient], 1e-10 * std)
    assert stats.isfinite().all()
    assert relative_error(gradient, expected) < (1e-6 if abs(mean) <= 10 * std else 1e-4)
