"""`attach` in a callback of `transformers.Trainer`, against the same training with gradients normalized by NumPy."""

import copy

import pytest
import torch
import transformers

from lightning_znorm import ZNorm, attach
from tests.helpers import normalize_by_numpy

pytestmark = pytest.mark.slow


class Normalize(transformers.TrainerCallback):
    def __init__(self, **options):
        self.options = options
        self.steps = []

    def on_train_begin(self, args, state, control, optimizer=None, model=None, **kwargs):
        self.handle = attach(optimizer, ZNorm(**self.options), model)
        self.handle.step = state.global_step

    def on_train_end(self, args, state, control, **kwargs):
        self.steps.append(self.handle.step)
        self.handle.remove()


class NormalizeByNumPy(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        normalize_by_numpy(optimizer)


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **{"vocab_size": 30, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    )
    return transformers.GPT2LMHeadModel(config)


def make_trainer(model, callback, **options):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (16, 9), generator=generator)
    defaults = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.01, "optim": "sgd"}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    arguments = transformers.TrainingArguments("out", **{**defaults, **quiet, **options})
    data = [{"input_ids": line, "labels": line} for line in tokens]
    return transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().double()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.01])
def test_training_is_that_by_hand(language_model, bf16, accumulation, max_grad_norm):
    models, callback = [copy.deepcopy(language_model) for _ in range(2)], Normalize()
    for model, chosen in zip(models, (callback, NormalizeByNumPy()), strict=True):
        options = {"bf16": bf16, "gradient_accumulation_steps": accumulation, "max_grad_norm": max_grad_norm}
        make_trainer(model, chosen, **options).train()
    start, trained, expected = map(flat, (language_model, *models))
    assert (expected - start).norm() > 0.1
    # a last digit of a weight may turn an activation's rounding to bfloat16
    assert (trained - expected).norm() < (1e-2 if bf16 else 1e-5) * (expected - start).norm()
    assert callback.steps == [4]


def test_exclude_and_a_second_training(language_model):
    model, callback = copy.deepcopy(language_model), Normalize(exclude="*.ln_*")
    trainer = make_trainer(model, callback, max_steps=1, learning_rate=1.0, lr_scheduler_type="constant")
    for _ in range(2):
        start = copy.deepcopy(model)
        trainer.train()
        for (name, new), old in zip(model.named_parameters(), start.parameters(), strict=True):
            # plain SGD, whose step is the gradient
            has_unit_std = (new - old).std(correction=0).item() == pytest.approx(1, abs=1e-3)
            assert has_unit_std == (".ln_" not in name), name
    assert callback.steps == [1, 1]


def test_the_schedule_goes_on_after_a_resume(language_model):
    models = [copy.deepcopy(language_model) for _ in range(2)]
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    for model, checkpoint in zip(models, (None, "out/checkpoint-2"), strict=True):
        callback = Normalize(stop_step=3)
        make_trainer(model, callback, **options).train(resume_from_checkpoint=checkpoint)
        assert callback.steps == [4]
    assert torch.equal(*map(flat, models))
