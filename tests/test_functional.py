import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lightning_znorm import centralize_, znorm_
from tests.helpers import parameter, relative_error, small_network, znorm_by_numpy


@pytest.mark.parametrize("eps", [1e-10, 1e-3, 1.0])
def test_eps_is_added_to_the_standard_deviation(eps):
    gradient = torch.randn(64) * 0.01
    std = gradient.double().std(correction=0)
    znorm_(parameter(gradient), eps=eps)
    assert gradient.double().std(correction=0) == pytest.approx((std / (std + eps)).item(), rel=1e-6)


def test_statistics_are_those_of_each_gradient_before():
    gradients = [torch.randn(4, 5) + 3, torch.randn(7) * 10]
    originals = [gradient.clone() for gradient in gradients]
    stats = znorm_([parameter(gradient) for gradient in gradients])
    for i, (before, after) in enumerate(zip(originals, gradients, strict=True)):
        exact = before.double().numpy()
        assert stats.mean[i] == pytest.approx(exact.mean())
        assert stats.std[i] == pytest.approx(exact.std())
        cosine = nn.functional.cosine_similarity(before.double().flatten(), after.double().flatten(), dim=0)
        assert stats.cosine[i] == pytest.approx(cosine.item())
    assert len(stats) == 2
    assert list(stats.by_device) == [torch.device("cpu")]
    assert stats.by_device[torch.device("cpu")].index == (0, 1)


def test_norm_of_a_normalized_gradient_is_the_root_of_its_size():
    gradient = torch.rand(30, 40)
    znorm_(parameter(gradient))
    assert gradient.norm() == pytest.approx(math.sqrt(1200), rel=1e-6)


def test_one_element_stays():
    gradients = [torch.tensor([0.7]), torch.tensor(-2.0), torch.full((1, 1, 1), 5.0)]
    stats = znorm_([parameter(gradient) for gradient in gradients])
    assert [gradient.item() for gradient in gradients] == [pytest.approx(0.7), -2.0, 5.0]
    assert stats.mean.tolist() == [pytest.approx(0.7), -2.0, 5.0]
    assert stats.std.tolist() == [0, 0, 0]
    assert stats.cosine.tolist() == [1, 1, 1]


def test_huge_but_finite_is_normalized():
    gradient = torch.tensor([1e300, -1e300, 3e300], dtype=torch.float64)
    stats = znorm_(parameter(gradient))
    assert gradient.isfinite().all()
    assert gradient.std(correction=0) == pytest.approx(1)
    assert stats.std.isfinite().all()


def test_missing_and_empty_gradients_are_skipped():
    dense = torch.randn(3)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    stats = znorm_([parameter(None, shape=(2,)), frozen, parameter(torch.empty(0, 4)), parameter(dense)])
    assert len(stats) == 1
    assert dense.mean().abs() < 1e-6


def test_no_gradient_at_all_gives_empty_statistics():
    stats = znorm_(small_network().parameters())
    assert len(stats) == 0
    assert stats.mean.shape == stats.std.shape == stats.cosine.shape == (0,)


def test_a_parameter_listed_twice_is_normalized_once():
    gradient = torch.randn(10) * 5 + 1
    expected = znorm_by_numpy(gradient, eps=0.5)
    tied = parameter(gradient)
    stats = znorm_([tied, tied], eps=0.5)
    assert len(stats) == 1
    assert relative_error(gradient, expected) < 1e-6


def test_accepts_a_tensor_an_iterable_and_a_generator():
    network = small_network()
    for parameters in (network[0].weight, list(network.parameters()), network.parameters()):
        network(torch.randn(8, 6)).square().sum().backward()
        assert len(znorm_(parameters)) == (1 if isinstance(parameters, torch.Tensor) else 4)


@pytest.mark.parametrize("empty", [[], iter(())])
def test_warns_when_there_is_nothing(empty):
    with pytest.warns(UserWarning, match="`parameters` is empty") as caught:
        znorm_(empty)
    assert caught[0].filename == __file__


def test_edits_in_place_and_keeps_strides():
    bucket = torch.randn(3 * 4 * 2 * 2)
    gradients = [
        torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 8).t(),
        bucket.view(3, 4, 2, 2),
        torch.randn(10)[::2],
    ]
    for gradient in gradients:
        expected, stride, address = znorm_by_numpy(gradient), gradient.stride(), gradient.data_ptr()
        holder = parameter(gradient)
        znorm_(holder)
        assert holder.grad is gradient
        assert (gradient.stride(), gradient.data_ptr()) == (stride, address)
        assert relative_error(gradient, expected) < 1e-6
    assert bucket.mean().abs() < 1e-6


def test_neighbours_in_a_bucket_are_untouched():
    bucket = torch.randn(30)
    before = bucket.clone()
    znorm_(parameter(bucket[10:20]))
    assert torch.equal(bucket[:10], before[:10])
    assert torch.equal(bucket[20:], before[20:])
    assert not torch.equal(bucket[10:20], before[10:20])


def test_builds_no_graph():
    weight = nn.Parameter(torch.randn(4))
    (weight.grad,) = torch.autograd.grad(weight.pow(3).sum(), weight, create_graph=True)
    stats = znorm_(weight)
    assert not stats.mean.requires_grad
    assert weight.grad.detach().mean().abs() < 1e-6


def test_mixed_dtypes_in_one_list():
    gradients = [torch.randn(50, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    znorm_([parameter(gradient) for gradient in gradients])
    for gradient, bound in zip(gradients, (1e-9, 1e-6, 1e-2), strict=True):
        assert gradient.double().std(correction=0) == pytest.approx(1, abs=bound)


def test_several_devices_are_gathered_in_the_order_of_the_parameters():
    # "meta" holds no values but is a second device on any machine
    stats = znorm_([parameter(torch.tensor([1.0, 3.0]))])
    cpu = stats.by_device[torch.device("cpu")]
    other = type(cpu)((0, 2), torch.tensor([10.0, 30.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.1, 0.3]))
    middle = type(cpu)((1,), torch.tensor([20.0]), torch.tensor([2.0]), torch.tensor([0.2]))
    joined = type(stats)({torch.device("meta"): other, torch.device("cpu"): middle})
    assert len(joined) == 3
    assert joined.mean.tolist() == [10, 20, 30]
    assert joined.std.tolist() == [1, 2, 3]


@pytest.mark.parametrize("transform_", [znorm_, centralize_])
@pytest.mark.parametrize(
    ("parameters", "got"),
    [
        (nn.Linear(3, 2), "got an object of type `Linear`"),
        (nn.Sequential(nn.Linear(3, 2)), "one of its entries is an object of type `Linear`"),
        ([*nn.Linear(3, 2).named_parameters()], "one of its entries is an object of type `tuple`"),
        (nn.Linear(3, 2).state_dict(), "one of its entries is 'weight'"),
        (torch.optim.SGD(nn.Linear(3, 2).parameters()), "got an object of type `SGD`"),
        ([{"params": []}], "one of its entries is an object of type `dict`"),
        (None, "got None"),
    ],
    ids=["module", "iterable module", "named", "state dict", "optimizer", "groups", "None"],
)
def test_refuses_anything_but_tensors(transform_, parameters, got):
    expected = f"Expected argument `parameters` to be a tensor or an iterable of tensors, but {got}."
    with pytest.raises(TypeError) as caught:
        transform_(parameters)
    assert str(caught.value) == f"{expected} Pass `model.parameters()`."


def test_an_error_inside_the_user_s_generator_is_not_replaced():
    with pytest.raises(AttributeError, match="has no attribute 'weigth'"):
        znorm_(layer.weigth for layer in small_network())


def test_accepts_a_list_of_parameters_that_is_a_module():
    weight = parameter(torch.randn(5))
    assert len(znorm_(nn.ParameterList([weight]))) == 1


@pytest.mark.parametrize("eps", [np.float32(0.25), np.float64(0.25), np.int64(1), Fraction(1, 4)], ids=repr)
def test_takes_every_kind_of_real_number_for_eps(eps):
    gradients = torch.randn(2, 30).unbind()
    znorm_(parameter(gradients[0].clone().copy_(gradients[1])), eps=eps)
    copies = [gradients[1].clone() for _ in range(2)]
    for copy, value in zip(copies, (eps, float(eps)), strict=True):
        znorm_(parameter(copy), eps=value)
    assert torch.equal(*copies)


@pytest.mark.parametrize(
    "eps", [0, -1e-8, math.nan, math.inf, "small", None, True, pytest.param(10**400, id="10**400"), torch.tensor(1e-8)]
)
def test_refuses_a_wrong_eps(eps):
    with pytest.raises(ValueError, match="Expected argument `eps` to be a positive finite number"):
        znorm_(small_network().parameters(), eps=eps)


def test_refuses_sparse_complex_and_integer_gradients():
    embedding = nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"parameters\[0\].*sparse.*exclude="):
        znorm_(embedding.parameters())
    waves = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    waves.abs().sum().backward()
    with pytest.raises(TypeError, match=r"parameters\[1\].*complex"):
        znorm_([parameter(torch.randn(2)), waves])


def test_refuses_before_it_edits_anything():
    first = torch.randn(5)
    before = first.clone()
    waves = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    waves.abs().sum().backward()
    with pytest.raises(TypeError):
        znorm_([parameter(first), waves])
    assert torch.equal(first, before)


def test_refuses_a_gradient_that_overlaps_itself():
    weight = parameter(torch.ones(1).expand(4))
    with pytest.raises(ValueError, match=r"share memory .*clone\(\)"):
        znorm_(weight)


def test_refuses_a_tensor_subclass():
    class Wrapped(torch.Tensor):
        pass

    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.randn(3).as_subclass(Wrapped)
    with pytest.raises(TypeError, match="`Wrapped`, expected a plain tensor"):
        znorm_(weight)


def test_the_default_dtype_of_a_first_call_does_not_stay():
    """Trainers of `16-true` and `bf16-true` change it within `training_step`, where manual optimization steps."""
    gradients = [torch.randn(size) for size in (37, 11)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        znorm_([parameter(gradient.bfloat16()) for gradient in gradients])
        within = [parameter(gradient.clone()) for gradient in gradients]
        znorm_(within)
    finally:
        torch.set_default_dtype(torch.float32)
    after = [parameter(gradient.clone()) for gradient in gradients]
    znorm_(after)
    for each in (within, after):
        for one, gradient in zip(each, gradients, strict=True):
            assert relative_error(one.grad, znorm_by_numpy(gradient)) < 1e-6


def test_refuses_what_fsdp_has_flattened():
    """It does not say which part of the gradient this rank has."""
    weight = parameter(torch.randn(3))
    weight._fsdp_flattened = True
    for transform in (znorm_, centralize_):
        with pytest.raises(TypeError, match=r"`parameters\[0\]` belongs to FullyShardedDataParallel.*fully_shard"):
            transform([weight])
