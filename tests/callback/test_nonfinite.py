"""`nonfinite` and `max_skips`: what becomes of a step with an inf or NaN, and that the counters survive."""

import copy
import itertools
from importlib import import_module

import pytest
import torch
from torch import nn

from lightning_znorm import ZNorm
from lightning_znorm.engine.nonfinite import find_nonfinite_position
from tests.helpers import PACKAGES, make_module, make_trainer, precision_arguments, recording_logger


def break_gradients(module, at, value=torch.nan, layer=0):
    """Make one element of one gradient non-finite in some batches (of all epochs)."""
    number = -1

    def on_train_batch_start(batch, batch_idx):
        nonlocal number
        number += 1

    def on_after_backward():
        if number in at:
            module.network[layer].weight.grad[0, 0] = value

    module.on_train_batch_start, module.on_after_backward = on_train_batch_start, on_after_backward
    return module


def record_weights(package="lightning.pytorch"):
    class Record(import_module(package).Callback):
        def __init__(self):
            self.weights = []

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.weights.append(copy.deepcopy(pl_module.network.state_dict()))

    return Record()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_skip_leaves_all_weights_and_goes_on(package, value):
    module = break_gradients(make_module(package, optimizer=momentum), at={1, 2}, value=value)
    callback, record = ZNorm(nonfinite="skip"), record_weights(package)
    with pytest.warns(UserWarning, match=r"skipped the optimizer step 1.*`network\.0\.weight` has an inf or NaN") as w:
        make_trainer(package, max_steps=5, callbacks=[callback, record]).fit(module)
    weights = record.weights
    assert [same(*pair) for pair in itertools.pairwise(weights)] == [True, True, False, False]
    assert callback.skipped_steps == 2
    assert len([x for x in w if "skipped the optimizer step" in str(x.message)]) == 1
    assert all(value.isfinite().all() for value in weights[-1].values())


@pytest.mark.parametrize("arguments", [{"exclude": ["network.0.weight"]}, {"min_ndim": 3}])
def test_skip_looks_at_excluded_parameters_too(arguments):
    module = break_gradients(make_module(), at={0})
    callback, record = ZNorm(nonfinite="skip", **arguments), record_weights()
    before = copy.deepcopy(module.network.state_dict())
    with pytest.warns(UserWarning, match="skipped the optimizer step 0"):
        make_trainer(max_steps=2, callbacks=[callback, record]).fit(module)
    assert same(before, record.weights[0])
    assert not same(before, record.weights[1])


def test_propagate_is_the_default_and_leaves_the_other_tensors_normalized():
    module = break_gradients(make_module(), at={0})
    make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(module)
    assert module.network[0].weight.isnan().sum() == 1
    assert module.network[2].weight.isfinite().all()


@pytest.mark.parametrize("package", PACKAGES)
def test_raise_names_the_parameter(package):
    module = break_gradients(make_module(package), at={2}, layer=2)
    record = record_weights(package)
    with pytest.raises(RuntimeError, match=r"`ZNorm\(nonfinite='raise'\)`: .* parameter `network\.2\.weight` has an"):
        make_trainer(package, max_steps=5, callbacks=[ZNorm(nonfinite="raise"), record]).fit(module)
    assert len(record.weights) == 2


def test_raise_under_a_scaler_says_what_a_scaler_does():
    module = make_module()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) * torch.inf
    arguments = precision_arguments("lightning.pytorch", "16-mixed")
    with pytest.raises(RuntimeError, match=r"`network\.0\.weight` has an inf or NaN\. A GradScaler provokes"):
        make_trainer(max_steps=1, callbacks=[ZNorm(nonfinite="raise")], **arguments).fit(module)


@pytest.mark.parametrize(("max_skips", "steps_made"), [(0, 0), (3, 3)])
def test_max_skips_in_a_row(max_skips, steps_made):
    module = break_gradients(make_module(), at=range(100))
    record = record_weights()
    callback = ZNorm(nonfinite="skip", max_skips=max_skips)
    with pytest.raises(RuntimeError, match=rf"the {max_skips} steps before were skipped.*\(`max_skips`\).*diverged"):
        make_trainer(max_steps=9, callbacks=[callback, record]).fit(module)
    assert len(record.weights) == steps_made
    assert callback.skipped_steps == steps_made


def test_a_good_step_starts_the_row_anew():
    module = break_gradients(make_module(), at={0, 1, 3, 4, 6, 7})
    callback = ZNorm(nonfinite="skip", max_skips=2)
    make_trainer(max_steps=9, callbacks=[callback]).fit(module)
    assert callback.skipped_steps == 6


def test_each_optimizer_has_a_row_of_its_own():
    module = make_module()
    module.automatic_optimization = False
    first = nn.functional.mse_loss

    def training_step(batch, batch_idx):
        for number, optimizer in enumerate(module.optimizers()):
            optimizer.zero_grad()
            module.manual_backward(first(module.network(batch[0]), batch[1]) * (torch.nan if number else 1))
            optimizer.step()

    module.training_step = training_step
    module.configure_optimizers = lambda: [
        torch.optim.SGD(module.network[layer].parameters(), lr=0.01) for layer in (0, 2)
    ]
    callback = ZNorm(nonfinite="skip", max_skips=3)
    with pytest.raises(RuntimeError, match="the 3 steps before were skipped"):
        make_trainer(max_epochs=1, callbacks=[callback]).fit(module)
    assert callback.skipped_steps == 3


@pytest.mark.parametrize("arguments", [{"start_step": 2}, {"stop_step": 1}])
def test_only_in_the_steps_in_which_the_transform_runs(arguments):
    module = break_gradients(make_module(), at={1})
    make_trainer(max_steps=2, callbacks=[ZNorm(nonfinite="raise", **arguments)]).fit(module)
    assert module.network[0].weight.isnan().any()


@pytest.mark.parametrize("package", PACKAGES)
def test_skips_are_logged_when_they_happen(package):
    logger = recording_logger(package)
    module = break_gradients(make_module(package), at={1, 3})
    make_trainer(package, max_steps=5, logger=logger, log_every_n_steps=100, callbacks=[ZNorm(nonfinite="skip")]).fit(
        module
    )
    assert logger.rows == [(1, {"znorm/skipped_steps": 1}), (3, {"znorm/skipped_steps": 2})]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_counters_survive_a_resume(package, tmp_path):
    def trainer(epochs, callback):
        return make_trainer(package, max_epochs=epochs, limit_train_batches=3, callbacks=[callback])

    first = trainer(1, ZNorm(nonfinite="skip", max_skips=3))
    first.fit(break_gradients(make_module(package), at={0, 1, 2}))
    first.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["ZNorm"]
    assert state == {"skipped_steps": 3, "consecutive_skips": {0: 3}}

    callback = ZNorm(nonfinite="skip", max_skips=3)
    with pytest.raises(RuntimeError, match="the 3 steps before"):
        trainer(2, callback).fit(break_gradients(make_module(package), at={0}), ckpt_path=tmp_path / "half.ckpt")
    assert callback.skipped_steps == 3

    callback = ZNorm(nonfinite="skip", max_skips=3)
    trainer(2, callback).fit(break_gradients(make_module(package), at={1}), ckpt_path=tmp_path / "half.ckpt")
    assert callback.skipped_steps == 4


@pytest.mark.parametrize("state", [None, {}, {"skipped_steps": 2}, {"of_a_later_version": 1}])
def test_checkpoints_of_other_versions_load(state, tmp_path):
    first = make_trainer(max_epochs=1, limit_train_batches=2, callbacks=[ZNorm(nonfinite="skip")])
    first.fit(make_module())
    first.save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    del checkpoint["callbacks"]["ZNorm"]
    if state is not None:
        checkpoint["callbacks"]["ZNorm"] = state
    torch.save(checkpoint, tmp_path / "old.ckpt")
    callback = ZNorm(nonfinite="skip")
    second = make_trainer(max_epochs=2, limit_train_batches=2, callbacks=[callback])
    second.fit(make_module(), ckpt_path=tmp_path / "old.ckpt")
    assert second.global_step == 4
    assert callback.skipped_steps == (state or {}).get("skipped_steps", 0)


def test_checkpoints_have_no_entry_without_the_policy(tmp_path, recwarn):
    trainer = make_trainer(max_steps=1, callbacks=[ZNorm(), ZNorm(nonfinite="skip", enabled=False)])
    trainer.fit(make_module())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert "ZNorm" not in torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_module(), ckpt_path=tmp_path / "last.ckpt")
    assert not [w for w in recwarn if "ZNorm" in str(w.message)]


def test_counters_start_anew_with_a_new_training():
    callback = ZNorm(nonfinite="skip")
    for _ in range(2):
        make_trainer(max_steps=2, callbacks=[callback]).fit(break_gradients(make_module(), at={0}))
        assert callback.skipped_steps == 1


@pytest.mark.parametrize("kind", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_take_a_step_without_gradients(optimizer, kind):
    module = break_gradients(make_module(optimizer=lambda p: optimizer(p, lr=0.01, **kind)), at={0, 2})
    record = record_weights()
    trainer = make_trainer(
        max_steps=4, callbacks=[ZNorm(nonfinite="skip"), record], gradient_clip_val=100.0, accumulate_grad_batches=1
    )
    trainer.fit(module)
    assert same(record.weights[1], record.weights[2])
    assert not same(record.weights[2], record.weights[3])


def test_first_nonfinite():
    good, broken = torch.ones(3), torch.tensor([1.0, -torch.inf])
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, torch.nan], (4,))
    assert find_nonfinite_position([]) == 0
    assert find_nonfinite_position([None, None]) == 2
    assert find_nonfinite_position([good, None, torch.empty(0)]) == 3
    assert find_nonfinite_position([good, broken, broken]) == 1
    assert find_nonfinite_position([good, None, sparse]) == 2
    assert find_nonfinite_position([good, torch.tensor([1 + 1j, complex(1, float("nan"))])]) == 1
    assert find_nonfinite_position([good.half(), torch.full((9,), 65504.0).half(), good.double()]) == 3
    assert find_nonfinite_position([torch.full((9,), 3e38)]) == 1
