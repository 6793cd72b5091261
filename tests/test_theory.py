"""The statements of docs/theory.md."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_znorm import ZNorm, attach, znorm_
from tests.helpers import parameter
from tests.test_properties import everything, gradients, znormed

EPS = 1e-10


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 6, generator=generator).double(), torch.randn(64, 4, generator=generator).double() + 1


def loss_of(model):
    inputs, targets = data()
    return nn.functional.mse_loss(model(inputs), targets)


def train(model, optimizer, steps, scale=1.0):
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * loss_of(model)).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def raw_and_normalized():
    model = network()
    loss_of(model).backward()
    raw = [parameter.grad.clone() for parameter in model.parameters()]
    znorm_(model.parameters())
    return model, raw, [parameter.grad for parameter in model.parameters()]


class TestDescent:
    @everything
    @given(gradients)
    def test_inner_product_is_d_times_the_standard_deviation(self, gradient):
        result = znormed(gradient)
        std = gradient.std(correction=0).item()
        expected = gradient.numel() * std**2 / (std + EPS)
        rounding = 1e-9 * gradient.norm().item() * math.sqrt(gradient.numel())
        assert (gradient * result).sum().item() == pytest.approx(expected, rel=1e-9, abs=rounding)

    @everything
    @given(gradients)
    def test_cosine(self, gradient):
        result = znormed(gradient)
        mean, std = gradient.mean(), gradient.std(correction=0)
        stats = znorm_(parameter(gradient.clone()))
        expected = (std / (mean.square() + std.square()).sqrt()).item()
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), result.flatten(), dim=0).item()
        assert cosine == pytest.approx(expected, abs=1e-7)
        assert stats.cosine.item() == pytest.approx(expected, abs=1e-7)
        assert expected > 0

    def test_of_all_parameters_together(self):
        _, raw, normalized = raw_and_normalized()
        inner = sum((one * other).sum() for one, other in zip(raw, normalized, strict=True))
        assert inner.item() == pytest.approx(sum(g.numel() * g.std(correction=0) for g in raw).item(), rel=1e-6)

    def test_a_small_step_lowers_the_loss_by_what_the_inner_product_says(self):
        model, raw, normalized = raw_and_normalized()
        before, rate = loss_of(model).item(), 1e-6
        with torch.no_grad():
            for own, step in zip(model.parameters(), normalized, strict=True):
                own.sub_(rate * step)
        expected = rate * sum(g.numel() * g.std(correction=0) for g in raw).item()
        assert before - loss_of(model).item() == pytest.approx(expected, rel=1e-3)


class TestWhatIsProjectedOut:
    @pytest.mark.parametrize("arguments", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
    def test_sgd_keeps_the_mean_of_each_tensor(self, arguments):
        model, other = network(), network()
        before = [own.mean().item() for own in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.003, **arguments)
        attach(optimizer, ZNorm())
        after = train(model, optimizer, 100)
        assert [own.mean().item() for own in after] == pytest.approx(before, abs=1e-9)
        plain = train(other, torch.optim.SGD(other.parameters(), lr=0.003, **arguments), 100)
        assert max(abs(own.mean().item() - mean) for own, mean in zip(plain, before, strict=True)) > 1e-3

    @pytest.mark.parametrize(("exclude", "is_learned"), [((), False), ("bias", True)])
    def test_an_offset_that_all_outputs_share_is_learned_only_without_it(self, exclude, is_learned):
        model = nn.Linear(3, 4)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(optimizer, ZNorm(exclude=exclude), model)
        for _ in range(100):
            optimizer.zero_grad()
            (model(torch.zeros(8, 3)) - 5).square().mean().backward()
            optimizer.step()
        assert (model.bias - 5).abs().max().item() == pytest.approx(0 if is_learned else 5, abs=0.1)

    @pytest.mark.parametrize("exclude", [(), "*.bias"])
    @pytest.mark.parametrize("has_hidden_layer", [True, False])
    def test_a_hidden_layer_makes_the_offset(self, exclude, has_hidden_layer):
        torch.manual_seed(0)
        inputs, weights = torch.randn(512, 8), torch.randn(8, 3)
        targets = inputs @ weights + 10
        hidden = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)]
        model = nn.Sequential(*hidden) if has_hidden_layer else nn.Sequential(nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        attach(optimizer, ZNorm(exclude=exclude), model)
        for _ in range(400):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
        assert loss.item() < 0.01 if has_hidden_layer else loss.item() > (50 if exclude == () else 0)


class TestInvariance:
    @everything
    @given(gradients, st.floats(1e-3, 1e3), st.floats(-100, 100))
    def test_scale_and_shift(self, gradient, scale, shift):
        other = gradient * scale + shift * scale * gradient.std(correction=0)
        torch.testing.assert_close(znormed(other), znormed(gradient), rtol=3e-6, atol=1e-5)

    @pytest.mark.parametrize("scale", [1e-3, 1e3])
    def test_a_factor_of_the_loss_changes_nothing(self, scale):
        trained = []
        for factor in (1.0, scale):
            model = network()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
            attach(optimizer, ZNorm(eps=1e-20))
            trained.append(train(model, optimizer, 50, factor))
        for one, other in zip(*trained, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


class TestOptimizers:
    def test_each_step_of_sgd_has_length_lr_times_root_d(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        attach(optimizer, ZNorm())
        for _ in range(20):
            before = [own.detach().clone() for own in model.parameters()]
            after = train(model, optimizer, 1)
            for one, other in zip(before, after, strict=True):
                assert (one - other).norm().item() == pytest.approx(0.01 * math.sqrt(one.numel()), rel=1e-6)

    @pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam])
    def test_the_l2_term_is_added_after_the_normalization(self, cls):
        model = network()
        optimizer = cls(model.parameters(), lr=0.01, weight_decay=0.1)
        attach(optimizer, ZNorm())
        reference, raw, normalized = raw_and_normalized()
        del raw
        for own, gradient in zip(reference.parameters(), normalized, strict=True):
            own.grad = gradient + 0.1 * own.detach()
        cls(reference.parameters(), lr=0.01).step()
        for one, other in zip(train(model, optimizer, 1), reference.parameters(), strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-9, atol=1e-12)

    def test_adam_sees_a_difference_only_where_mean_and_std_vary(self):
        """Gradients of zero mean and one standard deviation throughout: Adam takes the same steps with ZNorm."""
        generator = torch.Generator().manual_seed(0)
        paths = []
        sequence = [torch.randn(50, generator=generator).double() for _ in range(30)]
        sequence = [1e-4 * (g - g.mean()) / g.std(correction=0) for g in sequence]
        for transform in (ZNorm(eps=1e-20), None):
            own = nn.Parameter(torch.zeros(50).double())
            optimizer = torch.optim.Adam([own], lr=0.01, eps=1e-20)
            if transform is not None:
                attach(optimizer, transform)
            for gradient in sequence:
                own.grad = gradient.clone()
                optimizer.step()
            paths.append(own.detach())
        torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-12)


class TestNoise:
    """The bias of a convolution in front of BatchNorm has no effect on the loss."""

    def gradients(self, **arguments):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
        model(images)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attach(optimizer, ZNorm(**arguments), model)
        nn.functional.cross_entropy(model(images), labels).backward()
        raw = {name: own.grad.clone() for name, own in model.named_parameters()}
        optimizer.step()
        return raw, {name: own.grad for name, own in model.named_parameters()}

    def test_is_brought_to_unit_size(self):
        raw, normalized = self.gradients()
        assert raw["0.bias"].std() < 1e-5 * raw["0.weight"].std()
        assert normalized["0.bias"].std(correction=0).item() == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize("arguments", [{"min_ndim": 2}, {"exclude": "0.bias"}])
    def test_remedies(self, arguments):
        raw, normalized = self.gradients(**arguments)
        assert torch.equal(raw["0.bias"], normalized["0.bias"])
        assert normalized["0.weight"].std(correction=0).item() == pytest.approx(1, abs=1e-5)
