"""Every refusal and warning: which setting it names, which remedy, and that it comes before the first step."""

from importlib import import_module

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_znorm import GradientCentralization, GradientClipping, GradientStats, GradientTransform, ZNorm
from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm.engine.checks import refuse_shards
from tests.helpers import FIRST_PACKAGE, PACKAGES, make_module, make_trainer, small_network


class Untouched:
    """Fails if a training step is taken."""

    @staticmethod
    def module(package="lightning.pytorch", **kwargs):
        module = make_module(package, **kwargs)

        def training_step(batch, batch_idx):
            raise AssertionError("a step was taken before the refusal")

        module.training_step = training_step
        return module


def refused(match, module=None, package="lightning.pytorch", error=MisconfigurationException, callback=None, **trainer):
    with pytest.raises(error, match=match):
        make_trainer(package, max_steps=1, callbacks=[callback or ZNorm()], **trainer).fit(
            module or Untouched.module(package)
        )


def test_the_base_class_has_no_transform():
    with pytest.raises(TypeError, match="abstract"):
        GradientTransform()


@pytest.mark.parametrize("package", PACKAGES)
def test_exclude_that_matches_nothing(package):
    exception = import_module(f"{package}.utilities.exceptions").MisconfigurationException
    refused(
        r"`exclude` of `ZNorm`: the pattern 'encoder\.\*' matches no parameter.*network\.0\.weight",
        package=package,
        error=exception,
        callback=ZNorm(exclude=["*.bias", "encoder.*"]),
    )


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_two_enabled(package):
    with pytest.raises(
        import_module(f"{package}.utilities.exceptions").MisconfigurationException, match="2 enabled `ZNorm` callbacks"
    ):
        make_trainer(package, max_steps=1, callbacks=[ZNorm(), ZNorm(min_ndim=2)]).fit(Untouched.module(package))


def test_a_subclass_counts_as_a_second_one():
    class MyZNorm(ZNorm):
        pass

    class YourZNorm(ZNorm):
        pass

    for pair in ([MyZNorm(), ZNorm()], [MyZNorm(), YourZNorm()]):
        with pytest.raises(MisconfigurationException, match="2 enabled `ZNorm`"):
            make_trainer(max_steps=1, callbacks=pair).fit(Untouched.module())


def test_one_enabled_beside_a_disabled_one():
    make_trainer(max_steps=1, callbacks=[ZNorm(), ZNorm(enabled=False)]).fit(make_module())


@pytest.mark.parametrize("package", PACKAGES)
def test_strategies_whose_gradients_are_elsewhere(package):
    trainer = make_trainer(package, max_steps=1, callbacks=[ZNorm()])
    # Lightning itself asks for the package `deepspeed`
    deepspeed = import_module(f"{package}.strategies").DeepSpeedStrategy
    trainer.strategy.__class__, kind = deepspeed, trainer.strategy.__class__
    message = r"`strategy=DeepSpeedStrategy`.*strategy='ddp'.*`ModelParallelStrategy`.*strategy='fsdp'.*enabled=False"
    with pytest.raises(MisconfigurationError, match=message):
        trainer.callbacks[0].setup(trainer, Untouched.module(package), "fit")
    trainer.strategy.__class__ = kind


@pytest.mark.parametrize("package", PACKAGES)
def test_fsdp_with_flat_parameters_alone(package):
    trainer = make_trainer(package, max_steps=1, callbacks=[ZNorm()])
    # Lightning itself takes FSDP on accelerators only
    strategy = import_module(f"{package}.strategies").FSDPStrategy(process_group_backend="gloo", use_orig_params=False)
    trainer._accelerator_connector.strategy = strategy
    with pytest.raises(MisconfigurationError, match=r"FSDPStrategy\(use_orig_params=False\).*use_orig_params=True"):
        trainer.callbacks[0].setup(trainer, Untouched.module(package), "fit")


def test_a_transform_without_arithmetic_for_shards():
    class Sign(GradientTransform):
        def transform(self, parameters, grad_scale):
            return GradientStats({})

    class Half(ZNorm):
        def transform(self, parameters, grad_scale=None):
            return super().transform(parameters, grad_scale)

    class Both(Half):
        def measure_shards(self, gradients):
            return super().measure_shards(gradients)

        def transform_shards(self, gradients, sums, grad_scale=None):
            return super().transform_shards(gradients, sums, grad_scale)

    class Renamed(ZNorm):
        pass

    for transform in (Sign(), Half()):
        with pytest.raises(MisconfigurationError, match=f"`{type(transform).__name__}` has no arithmetic for sharded"):
            refuse_shards(transform)
    for transform in (Both(), Renamed(), ZNorm(), GradientCentralization(), GradientClipping()):
        refuse_shards(transform)


def test_strategies_by_their_place_in_lightning():
    """DeepSpeed and XLA derive from DDP and single-device strategies, a user's subclass counts as its parent."""
    from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceXLAStrategy, Strategy, XLAStrategy

    from lightning_znorm._lightning import nearest_class
    from lightning_znorm.hosts.support import _STRATEGIES

    class MySingle(SingleDeviceStrategy):
        pass

    class MyDDP(DDPStrategy):
        pass

    class Foreign(Strategy):
        pass

    def supported(cls):
        return nearest_class(cls.__new__(cls)) in _STRATEGIES

    Foreign.__abstractmethods__ = frozenset()
    assert [supported(cls) for cls in (SingleDeviceStrategy, DDPStrategy, MySingle, MyDDP)] == [True] * 4
    assert [supported(cls) for cls in (FSDPStrategy, ModelParallelStrategy)] == [True] * 2
    others = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy, Foreign)
    assert [supported(cls) for cls in others] == [False] * 4


def test_model_averaging():
    refused("model_averaging_period", strategy=DDPStrategy(process_group_backend="gloo", model_averaging_period=2))


class Unknown(MixedPrecision):
    precision = "8-mixed"

    def __init__(self):
        super().__init__("bf16-mixed", "cpu")
        self.precision = "8-mixed"


class Foreign(Precision):
    precision = "transformer-engine"


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Unknown, r"`precision='8-mixed'` \(Unknown\).*Use one of '32-true', '16-mixed'.*enabled=False"),
        (Foreign, r"`precision='transformer-engine'` \(Foreign\)"),
    ],
)
def test_other_precisions(plugin, message):
    refused(message, plugins=[plugin()])


def test_a_scaler_that_is_not_pytorchs():
    class Scaler:
        def is_enabled(self):
            return True

    refused("does not support the scaler `Scaler`", plugins=[MixedPrecision("16-mixed", "cpu", scaler=Scaler())])


@pytest.mark.parametrize("fused", [False, True])
def test_float16_parameters_under_a_scaler(fused):
    network = small_network().half()
    refused(
        r"float16 parameter `network\.0\.weight` under a GradScaler.*precision='16-true'",
        Untouched.module(network=network, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, fused=fused)),
        plugins=[MixedPrecision("16-mixed", "cpu")],
    )


def test_lbfgs():
    refused("optimizer `LBFGS`.*several times per step", Untouched.module(optimizer=torch.optim.LBFGS))


def test_an_optimizer_that_evaluates_its_closure_twice():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    refused("optimizer `Twice`", make_module(optimizer=lambda parameters: Twice(parameters, lr=0.1)))


class Embedder(nn.Module):
    def __init__(self, sparse=True, dtype=torch.float32):
        super().__init__()
        self.embedding = nn.Embedding(10, 3, sparse=sparse, dtype=dtype)
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs) + self.embedding(inputs[:, 0].abs().long().clamp(max=9)).abs()


def test_sparse_gradient():
    refused(
        r"sparse gradient of parameter `network\.embedding\.weight`.*exclude=\['network\.embedding\.weight'\]",
        Untouched.module(network=Embedder()),
    )


def test_sparse_gradient_inside_a_compiled_module_is_named_as_exclude_takes_it():
    network = Embedder()
    network.embedding = torch.compile(network.embedding, backend="eager")
    refused(r"exclude=\['network\.embedding\.weight'\]", Untouched.module(network=network))
    trainer = make_trainer(max_steps=1, callbacks=[ZNorm(exclude=["network.embedding.weight"])])
    trainer.fit(make_module(network=network))


def test_sparse_gradient_excluded():
    trainer = make_trainer(max_steps=2, callbacks=[ZNorm(exclude=["*.embedding.*"])])
    trainer.fit(make_module(network=Embedder()))


def test_sparse_gradient_that_no_module_announces():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(10, 3))

        def forward(self, inputs):
            return nn.functional.embedding(inputs[:, 0].abs().long().clamp(max=9), self.table, sparse=True)

    refused(r"`network\.table` is sparse.*exclude=", make_module(network=Hidden()), error=TypeError)


def test_complex_gradient():
    refused(
        r"complex gradient of parameter `network\.embedding\.weight`.*exclude=",
        Untouched.module(network=Embedder(sparse=False, dtype=torch.complex64)),
    )


def test_frozen_parameters_do_not_count():
    network = Embedder(dtype=torch.complex64)
    network.embedding.requires_grad_(False)
    make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(make_module(network=network))


def test_disabled_refuses_nothing():
    trainer = make_trainer(
        max_steps=1, callbacks=[ZNorm(enabled=False, exclude=["nothing"])], plugins=[MixedPrecision("16-mixed", "cpu")]
    )
    trainer.fit(make_module())


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_clipping_warns_once(package, recwarn):
    trainer = make_trainer(package, max_steps=3, callbacks=[ZNorm()], gradient_clip_val=1.0)
    trainer.fit(make_module(package))
    messages = [str(w.message) for w in recwarn if "gradient_clip_val" in str(w.message)]
    assert len(messages) == 1
    assert "clipping runs after the callback" in messages[0]
    assert "sqrt(numel)" in messages[0]


def test_no_warning_without_clipping(recwarn):
    make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(make_module())
    assert not [w for w in recwarn if "ZNorm" in str(w.message)]


def test_log_stats_without_a_logger_warns():
    with pytest.warns(UserWarning, match="`log_stats='layers'` of `ZNorm` has no effect"):
        make_trainer(max_steps=1, callbacks=[ZNorm(log_stats="layers")]).fit(make_module())


def test_steps_past_the_trainer_warn():
    module = make_module()
    module.optimizer_step = lambda epoch, batch_idx, optimizer, closure: optimizer.optimizer.step(closure)
    with pytest.warns(UserWarning, match="`ZNorm` never ran"):
        make_trainer(max_epochs=1, limit_train_batches=2, callbacks=[ZNorm()]).fit(module)


@pytest.mark.parametrize("arguments", [{"min_ndim": 3}, {"exclude": "*"}, {"start_step": 9}])
def test_a_training_without_one_transformed_gradient_warns(arguments):
    with pytest.warns(UserWarning, match="`ZNorm` ran, but transformed no gradient"):
        make_trainer(max_steps=2, callbacks=[ZNorm(**arguments)]).fit(make_module())


def test_switched_on_in_the_middle_of_training():
    class Switch(import_module("lightning.pytorch").Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.callbacks[0].enabled = True

    with pytest.raises(MisconfigurationException, match=r"switched on in the middle of training.*start_step"):
        make_trainer(max_steps=2, callbacks=[ZNorm(enabled=False), Switch()]).fit(make_module())


def test_lets_go_of_the_parameters_after_a_crash():
    callback, module = ZNorm(), Untouched.module()
    with pytest.raises(AssertionError):
        make_trainer(max_steps=2, callbacks=[callback]).fit(module)
    assert callback._fit is None
