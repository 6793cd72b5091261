"""`attach` in loops of plain PyTorch; its equality with the reference is in the matrix."""

import pickle

import pytest
import torch

from lightning_znorm import GradientStats, GradientTransform, ZNorm, attach
from tests.attach.helpers import backpropagate, sgd, stds
from tests.helpers import small_network


def test_the_gradients_are_transformed_in_each_step_until_it_is_removed():
    network = small_network()
    optimizer = sgd(network)
    handle = attach(optimizer, ZNorm())
    for step in range(3):
        optimizer.zero_grad()
        backpropagate(network)
        optimizer.step()
        assert stds(network) == pytest.approx([1] * 4, abs=1e-4)
        assert handle.step == step + 1
        assert len(handle.stats) == 4
    handle.remove()
    handle.remove()
    optimizer.zero_grad()
    backpropagate(network)
    optimizer.step()
    assert stds(network) != pytest.approx([1] * 4, abs=0.01)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_context_manager_removes_it():
    optimizer = sgd(small_network())
    with attach(optimizer, ZNorm()):
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_is_evaluated_first_and_its_loss_returned(keyword):
    network = small_network()
    optimizer = sgd(network)
    attach(optimizer, ZNorm())

    def closure():
        optimizer.zero_grad()
        return backpropagate(network)

    loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert loss.item() > 0
    assert stds(network) == pytest.approx([1] * 4, abs=1e-4)


def test_one_transform_on_several_optimizers():
    network, znorm = small_network(), ZNorm(stop_step=2)
    optimizers = [sgd(network[0]), sgd(network[2])]
    handles = [attach(optimizer, znorm) for optimizer in optimizers]
    backpropagate(network)
    optimizers[0].step()
    assert stds(network)[:2] == pytest.approx([1, 1], abs=1e-4)
    assert stds(network)[2:] != pytest.approx([1, 1], abs=0.01)
    assert [handle.step for handle in handles] == [1, 0]


def test_the_schedule_counts_this_optimizers_steps():
    class EvenEpochs(ZNorm):
        def should_transform(self, step, epoch):
            return super().should_transform(step, epoch) and epoch % 2 == 0

    network = small_network()
    optimizer = sgd(network)
    handle = attach(optimizer, EvenEpochs(start_step=1, stop_step=5))
    transformed = []
    for step in range(6):
        handle.epoch = step // 2
        optimizer.zero_grad()
        backpropagate(network)
        optimizer.step()
        transformed.append(handle.stats is not None)
    assert transformed == [False, True, False, False, True, False]


@pytest.mark.parametrize("source", ["module", "named parameters", "ddp-like prefix"])
def test_exclude_by_name(source):
    network = small_network()
    if source == "named parameters":
        optimizer = torch.optim.SGD(network.named_parameters(), lr=0.1)
        attach(optimizer, ZNorm(exclude=["*.bias"]))
    else:
        optimizer = sgd(network)
        module = network if source == "module" else torch.compile(network, backend="eager")
        attach(optimizer, ZNorm(exclude=["0.bias", "2.bias"]), module)
    backpropagate(network)
    optimizer.step()
    assert stds(network)[::2] == pytest.approx([1, 1], abs=1e-4)
    assert stds(network)[1::2] != pytest.approx([1, 1], abs=0.01)


def test_parameters_that_are_added_later():
    network = small_network()
    optimizer = torch.optim.SGD(network[0].named_parameters(), lr=0.1)
    attach(optimizer, ZNorm(exclude=["*bias"]))
    optimizer.add_param_group({"params": [("head.weight", network[2].weight), ("head.bias", network[2].bias)]})
    backpropagate(network)
    optimizer.step()
    transformed = [std == pytest.approx(1, abs=1e-4) for std in stds(network)]
    assert transformed == [True, False, True, False]


def test_nonfinite_skip_and_raise():
    network = small_network()
    optimizer = sgd(network)
    before = network[0].weight.detach().clone()
    handle = attach(optimizer, ZNorm(nonfinite="skip", max_skips=2), network)
    backpropagate(network, factor=torch.nan)
    with pytest.warns(UserWarning, match=r"skipped the optimizer step 0.*`0\.weight` has an inf or NaN"):
        optimizer.step()
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(before, network[0].weight)
    assert handle.skipped_steps == 1
    backpropagate(network, factor=torch.nan)
    optimizer.step()
    backpropagate(network, factor=torch.nan)
    with pytest.raises(RuntimeError, match="the 2 steps before were skipped"):
        optimizer.step()
    handle.remove()
    attach(optimizer, ZNorm(nonfinite="raise"), network)
    with pytest.raises(RuntimeError, match=r"`0\.weight` has an inf or NaN"):
        optimizer.step()


def test_counters_survive_in_a_state_dict():
    optimizer = sgd(small_network())
    handle = attach(optimizer, ZNorm(nonfinite="skip"))
    handle.step, handle.epoch = 7, 2
    handle._counts.skipped_steps = 3
    state = pickle.loads(pickle.dumps(handle.state_dict()))
    handle.remove()
    again = attach(optimizer, ZNorm(nonfinite="skip"))
    again.load_state_dict(state)
    assert (again.step, again.epoch, again.skipped_steps) == (7, 2, 3)
    again.load_state_dict({})
    assert (again.step, again.skipped_steps) == (0, 0)


def test_log_stats_has_no_logger():
    with pytest.warns(
        UserWarning, match="`log_stats='layers'` of `ZNorm` logs nothing outside a Trainer: read `stats`"
    ):
        attach(sgd(small_network()), ZNorm(log_stats="layers"))


def test_disabled_attaches_nothing():
    optimizer = torch.optim.LBFGS(small_network().parameters())
    handle = attach(optimizer, ZNorm(enabled=False, exclude="nothing"))
    assert not optimizer._optimizer_step_pre_hooks
    handle.remove()


def test_other_transforms():
    class Sign(GradientTransform):
        def transform(self, parameters, grad_scale):
            for parameter in parameters:
                parameter.grad.sign_()
            return GradientStats({})

    network = small_network()
    optimizer = sgd(network)
    attach(optimizer, Sign(min_ndim=2))
    attach(optimizer, ZNorm(exclude="*.weight"), network)
    backpropagate(network)
    optimizer.step()
    assert network[0].weight.grad.abs().unique().tolist() == [1.0]
    assert stds(network)[1::2] == pytest.approx([1, 1], abs=1e-4)


def test_switched_off_and_on_again():
    network = small_network()
    optimizer, znorm = sgd(network), ZNorm()
    handle = attach(optimizer, znorm)
    znorm.enabled = False
    backpropagate(network)
    optimizer.step()
    assert stds(network) != pytest.approx([1] * 4, abs=0.01)
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks
    handle = attach(optimizer, znorm)
    znorm.enabled = True
    handle.remove()


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_an_empty_group_comes_first(nonfinite):
    network = small_network()
    optimizer = torch.optim.SGD([{"params": []}, {"params": list(network.parameters())}], lr=0.1)
    attach(optimizer, ZNorm(nonfinite=nonfinite))
    backpropagate(network)
    optimizer.step()
    assert stds(network) == pytest.approx([1] * 4, abs=1e-4)


def test_another_optimizer_in_an_attribute_is_not_taken_for_the_one_inside_a_wrapper():
    class Averaging(torch.optim.SGD):
        """Steps itself, whatever else it has in attributes with the names that wrappers use."""

        def __init__(self, parameters, **options):
            super().__init__(parameters, **options)
            self._optimizer = self.optimizer = torch.optim.SGD([torch.zeros(3)], lr=0.1)

    network = small_network()
    optimizer = Averaging(network.parameters(), lr=0.1)
    handle = attach(optimizer, ZNorm())
    backpropagate(network)
    optimizer.step()
    assert handle.step == 1
    assert stds(network) == pytest.approx([1] * 4, abs=1e-4)


def test_exclude_in_a_module_that_data_parallelism_wraps():
    network = small_network()
    optimizer = sgd(network)
    attach(optimizer, ZNorm(exclude="0.*"), torch.nn.DataParallel(network))
    backpropagate(network)
    optimizer.step()
    assert [std == pytest.approx(1, abs=1e-4) for std in stds(network)] == [False, False, True, True]
