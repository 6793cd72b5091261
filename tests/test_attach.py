"""`attach` in loops of plain PyTorch and of Fabric; its equality with the reference is in the matrix."""

import copy
import pickle
from importlib import import_module

import pytest
import torch
from torch import nn

from lightning_znorm import GradientStats, GradientTransform, ZNorm, attach
from lightning_znorm._compat import MisconfigurationException
from tests.helpers import make_module, make_trainer, small_network

FABRICS = ("lightning.fabric", "lightning_fabric")


def sgd(network, **options):
    return torch.optim.SGD(network.parameters(), lr=0.1, **options)


def backpropagate(network, factor=1.0):
    torch.manual_seed(9)
    loss = network(torch.randn(4, 6)).square().mean() * factor
    loss.backward()
    return loss


def stds(network):
    return [p.grad.std(correction=0).item() for p in network.parameters()]


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
    with attach(optimizer, ZNorm()) as handle:
        assert list(optimizer._optimizer_step_pre_hooks.values()) == [handle]
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


def test_an_optimizer_that_evaluates_its_closure_twice():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    network = small_network()
    before = copy.deepcopy(network)
    optimizer = Twice(network.parameters(), lr=0.1)
    attach(optimizer, ZNorm())
    with pytest.raises(MisconfigurationException, match=r"optimizer `Twice`.*several times per step"):
        optimizer.step(lambda: backpropagate(network))
    assert torch.equal(before[0].weight, network[0].weight)


def test_lbfgs():
    optimizer = torch.optim.LBFGS(small_network().parameters())
    with pytest.raises(MisconfigurationException, match="optimizer `LBFGS`"):
        attach(optimizer, ZNorm())
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("optimizer", "transform", "module", "message"),
    [
        ("SGD", ZNorm(), None, "Expected argument `optimizer`"),
        (sgd(small_network()), ZNorm, None, "Expected argument `transform`"),
        (sgd(small_network()), ZNorm(), "model", "Expected argument `module`"),
    ],
)
def test_arguments_of_wrong_types(optimizer, transform, module, message):
    with pytest.raises(TypeError, match=message):
        attach(optimizer, transform, module)


def test_attached_twice():
    network = small_network()
    optimizer = sgd(network)
    handle = attach(optimizer, ZNorm())
    with pytest.raises(MisconfigurationException, match="`ZNorm` is attached to the optimizer `SGD` already"):
        attach(optimizer, ZNorm(min_ndim=2))
    handle.remove()
    attach(optimizer, ZNorm())


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


def test_exclude_without_names():
    with pytest.raises(TypeError, match=r"`exclude` of `ZNorm` needs the names.*`module=` to `attach`.*named_param"):
        attach(sgd(small_network()), ZNorm(exclude=["*.bias"]))


def test_exclude_that_matches_nothing():
    with pytest.raises(MisconfigurationException, match=r"the pattern 'encoder\.\*' matches no parameter.*0\.weight"):
        attach(sgd(small_network()), ZNorm(exclude="encoder.*"), small_network())


def test_parameters_that_are_added_later():
    network = small_network()
    optimizer = torch.optim.SGD(network[0].named_parameters(), lr=0.1)
    attach(optimizer, ZNorm(exclude=["bias"]))
    optimizer.add_param_group({"params": [("head.weight", network[2].weight), ("head.bias", network[2].bias)]})
    backpropagate(network)
    optimizer.step()
    transformed = [std == pytest.approx(1, abs=1e-4) for std in stds(network)]
    assert transformed == [True, False, True, True]


def test_sparse_and_complex_parameters():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = sgd(embedding)
    with pytest.raises(MisconfigurationException, match=r"sparse gradient of parameter `weight`.*exclude=\['weight'\]"):
        attach(optimizer, ZNorm(), embedding)
    handle = attach(optimizer, ZNorm())  # without the module it shows in the first step
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(TypeError, match=r"`param_groups\[0\]\['params'\]\[0\]` is sparse"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)
    handle.remove()
    attach(optimizer, ZNorm(exclude="weight"), embedding)
    optimizer.step()

    numbers = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(MisconfigurationException, match="complex gradient"):
        attach(torch.optim.SGD([numbers], lr=0.1), ZNorm())


def test_parameters_that_fsdp_has_flattened():
    network = small_network()
    network[0].weight._fsdp_flattened = True
    with pytest.raises(MisconfigurationException, match="FullyShardedDataParallel"):
        attach(sgd(network), ZNorm())
    network = small_network()
    optimizer = sgd(network)
    attach(optimizer, ZNorm())
    network[0].weight._fsdp_flattened = True
    backpropagate(network)
    with pytest.raises(MisconfigurationException, match="FullyShardedDataParallel"):
        optimizer.step()


def test_float16_gradients_under_a_scaler():
    network = small_network().half()
    optimizer = sgd(network, fused=True)
    attach(optimizer, ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(network(torch.randn(4, 6).half()).float().square().mean()).backward()
    before = network[0].weight.detach().clone()
    with pytest.raises(TypeError, match="is float16 and still multiplied by a GradScaler's scale"):
        scaler.step(optimizer)
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_a_scaler_with_clipping_before(kind, unscale, clip):
    """`unscale_` for clipping tells a fused optimizer not to divide again."""
    updates = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network = small_network()
        before = network[0].weight.detach().clone()
        optimizer = sgd(network, **kind)
        attach(optimizer, ZNorm(eps=0.3))
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        scaler.scale(backpropagate_loss(network)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            if clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        updates.append(network[0].weight.detach() - before)
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-5, atol=1e-7)


def backpropagate_loss(network):
    torch.manual_seed(9)
    return network(torch.randn(4, 6)).square().mean()


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_the_scaler_skips_an_inf(kind, nonfinite):
    network = small_network()
    before = copy.deepcopy(network)
    optimizer = sgd(network, **kind)
    handle = attach(optimizer, ZNorm(nonfinite=nonfinite))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(backpropagate_loss(network) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(before[0].weight, network[0].weight)
    assert scaler.get_scale() == 2.0**15
    assert handle.skipped_steps == 0


def test_an_optimizer_that_takes_the_scaler_itself():
    """The older of the two ways in which a GradScaler hands its scale to an optimizer."""

    class Own(torch.optim.SGD):
        _step_supports_amp_scaling = True

        def step(self, closure=None, *, grad_scaler=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.div_(grad_scaler.get_scale())
            return super().step(closure)

    network = small_network()
    optimizer = Own(network.parameters(), lr=0.1)
    attach(optimizer, ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(backpropagate_loss(network)).backward()
    with pytest.warns(FutureWarning, match="GradScaler"):
        scaler.step(optimizer)
    assert stds(network) == pytest.approx([1] * 4, abs=1e-3)


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
    handle._nonfinite_policy.skipped_steps = 3
    state = pickle.loads(pickle.dumps(handle.state_dict()))
    handle.remove()
    again = attach(optimizer, ZNorm(nonfinite="skip"))
    again.load_state_dict(state)
    assert (again.step, again.epoch, again.skipped_steps) == (7, 2, 3)
    again.load_state_dict({})
    assert (again.step, again.skipped_steps) == (0, 0)


def test_log_stats_has_no_logger():
    with pytest.warns(
        UserWarning, match="`log_stats='layers'` of `ZNorm` has no effect outside a Trainer: read `stats`"
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


@pytest.mark.parametrize("value", ["skip", "raise"])
def test_cuda_graphs_cannot_capture_what_waits_for_the_device(monkeypatch, value):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    network = small_network()
    optimizer = sgd(network)
    with attach(optimizer, ZNorm(nonfinite=value)):
        backpropagate(network)
        with pytest.raises(MisconfigurationException, match=rf"`ZNorm\(nonfinite='{value}'\)`.*CUDA graph"):
            optimizer.step()
    with attach(optimizer, ZNorm()):
        optimizer.step()


class WithOwnTransform:
    """Attached in `configure_optimizers` of a LightningModule."""

    @staticmethod
    def module():
        def make(parameters):
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            attach(optimizer, ZNorm())
            return optimizer

        return make_module(optimizer=make)


def test_attached_and_a_callback():
    with pytest.raises(MisconfigurationException, match="`ZNorm` is attached to the optimizer `SGD` already"):
        make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(WithOwnTransform.module())


def test_attached_under_a_trainer():
    module = WithOwnTransform.module()
    make_trainer(max_steps=2, gradient_clip_val=1e-3).fit(module)
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-3) for p in module.parameters())


@pytest.mark.parametrize("package", FABRICS)
def test_fabric_excludes_by_the_names_of_the_module_itself(package):
    fabric = import_module(package).Fabric(accelerator="cpu", devices=1)
    network = small_network()
    for module in (network, torch.compile(network, backend="eager")):
        model, optimizer = fabric.setup(module, sgd(network))
        with attach(optimizer, ZNorm(exclude="0.*"), model):
            optimizer.zero_grad()
            fabric.backward(model(torch.randn(4, 6)).square().mean())
            optimizer.step()
        assert stds(network)[2:] == pytest.approx([1, 1], abs=1e-4)
        assert stds(network)[:2] != pytest.approx([1, 1], abs=0.01)


@pytest.mark.parametrize("package", FABRICS)
def test_fabric_clips_before(package):
    fabric = import_module(package).Fabric(accelerator="cpu", devices=1)
    network = small_network()
    model, optimizer = fabric.setup(network, sgd(network))
    attach(optimizer, ZNorm())
    fabric.backward(model(torch.randn(4, 6)).square().mean())
    fabric.clip_gradients(model, optimizer, max_norm=1e-3)
    optimizer.step()
    assert stds(network) == pytest.approx([1] * 4, abs=1e-4)


@pytest.mark.parametrize("package", FABRICS)
def test_fabrics_strategies_and_precisions(package):
    fabric = import_module(package).Fabric(accelerator="cpu", devices=1)
    _, optimizer = fabric.setup(*(lambda network: (network, sgd(network)))(small_network()))
    fsdp = import_module(f"{package}.strategies").FSDPStrategy
    strategy = optimizer._strategy
    kind, precision = type(strategy), strategy.precision
    # Lightning itself takes FSDP on accelerators only
    strategy.__class__, strategy._precision = fsdp, None
    with pytest.raises(MisconfigurationException, match="does not support `strategy=FSDPStrategy`"):
        attach(optimizer, ZNorm())
    strategy.__class__, strategy._precision = kind, precision
    optimizer._strategy.precision.precision = "transformer-engine"
    with pytest.raises(MisconfigurationException, match="does not support `precision='transformer-engine'`"):
        attach(optimizer, ZNorm())
    attach(optimizer, ZNorm(enabled=False))
