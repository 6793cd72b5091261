"""Data modules in a Trainer: order, resume, several ranks."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from torchmetrics import MeanMetric

from lightning_znorm.vision.data._augmentation import QuarterTurns
from tests import warm
from tests.helpers import QUIET
from tests.vision.data.numbered import BOTH, Module

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@BOTH
def test_in_a_trainer(on_device):
    from lightning_znorm import ZNorm
    from lightning_znorm.vision import ImageClassifier

    model = ImageClassifier("shufflenet_v2_x0_5", num_classes=50)
    module = Module(augmentation=QuarterTurns(), on_device=on_device)
    trainer = Trainer(max_epochs=2, callbacks=[ZNorm()], **QUIET)
    trainer.fit(model, datamodule=module)
    assert trainer.global_step == 2 * 7
    (metrics,) = trainer.test(model, datamodule=module, verbose=False)
    assert 0 <= metrics["test_acc"] <= 1


class Collect(BoringModel):
    """Notes the numbers of the samples of each epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []
        self.evaluated = []
        self.mean = MeanMetric()

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        self.epochs[-1] += batch[1].tolist()
        return self.layer(torch.ones(1, 32)).sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch[1].tolist())
        self.mean.update(batch[1])
        self.log("mean", self.mean)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return batch[1]


@BOTH
class TestOrder:
    def fit(self, on_device, epochs, model=None, **arguments):
        seed_everything(0, verbose=False)
        model = model or Collect()
        checkpoint = arguments.pop("ckpt_path", None)
        data = Module(on_device=on_device, num_workers=arguments.pop("num_workers", 0))
        trainer = Trainer(**{"max_epochs": epochs, "limit_val_batches": 0, **QUIET, **arguments})
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
        return trainer, model.epochs

    def test_goes_on_where_loaders_are_made_anew(self, on_device):
        _, usual = self.fit(on_device, 3)
        assert len({tuple(epoch) for epoch in usual}) == 3
        assert usual == self.fit(on_device, 3, reload_dataloaders_every_n_epochs=1)[1]

    @pytest.mark.slow
    def test_is_the_same_with_workers(self, on_device):
        _, usual = self.fit(on_device, 3)
        assert usual == self.fit(on_device, 3, num_workers=2)[1]

    def test_goes_on_where_a_training_is_resumed(self, on_device):
        _, usual = self.fit(on_device, 3)
        trainer, first = self.fit(on_device, 2)
        trainer.save_checkpoint("model.ckpt")
        _, rest = self.fit(on_device, 3, ckpt_path="model.ckpt")
        assert first + rest == usual

    @pytest.mark.filterwarnings("ignore:You requested to overfit")
    def test_overfitting_takes_the_same_batches(self, on_device):
        model = Collect()
        _, epochs = self.fit(on_device, 3, model, overfit_batches=2, limit_val_batches=1.0, num_sanity_val_steps=0)
        assert epochs == [list(range(16))] * 3
        assert model.evaluated == [list(range(8)), list(range(8, 16))] * 3

    def test_predictions_are_in_order(self, on_device):
        trainer = Trainer(**QUIET)
        predictions = trainer.predict(Collect(), datamodule=Module(on_device=on_device))
        assert torch.cat(predictions).tolist() == list(range(17))


DDP = """
import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, {root!r})
from lightning_znorm.vision import Digits
from lightning_znorm.vision.data._augmentation import FlipAndCrop
from tests.vision.data.numbered import Module
from tests.vision.data.test_in_trainer import Collect

class Pixels(Collect):
    pixels = 0.0

    def training_step(self, batch, batch_idx):
        images, numbers = batch
        black = (torch.zeros(3) - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0])
        self.pixels = (images == black[:, None, None]).all(dim=1).flatten(1).float().tolist()
        return super().training_step(batch, batch_idx)

if __name__ == "__main__":
    model = Pixels()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    arguments = dict(on_device={on_device}, num_workers={workers})
    trainer.fit(model, datamodule=Module(batch_size=50, augmentation=FlipAndCrop(padding=3), **arguments))
    found = dict(seen=model.epochs[0], black=model.pixels)
    predicted = trainer.predict(model, datamodule=Module(**arguments))
    found["predicted"] = torch.cat(predicted).tolist()
    for name in ("validate", "test"):
        model.evaluated = []
        (metrics,) = getattr(trainer, name)(model, datamodule=Module(**arguments), verbose=False)
        found[name] = (model.evaluated, metrics["mean"])
    model.evaluated = []
    trainer.validate(model, datamodule=Digits(batch_size=64, image_size=8), verbose=False)
    found["digits"] = list(map(len, model.evaluated))
    Path(f"rank{{trainer.global_rank}}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_device", "workers", "starter"),
    [
        (True, 0, "test"),
        (False, 0, "test"),
        *(pytest.param(*case, "lightning", marks=pytest.mark.long) for case in ((True, 0), (False, 1))),
    ],
)
def test_ddp_shares_the_samples(on_device, workers, starter):
    """Every sample once, each rank with an augmentation of its own, though nobody has seeded them."""
    Path("train.py").write_text(DDP.format(root=str(ROOT), on_device=on_device, workers=workers))
    for done in warm.run_ranks("train.py") if starter == "test" else [warm.run("train.py")]:
        assert done.returncode == 0, done.stderr
        assert "DistributedSampler" not in done.stderr
    found = [json.loads(Path(f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(part["seen"]) for part in found] == [25, 25]
    assert sorted(itertools.chain(*(part["seen"] for part in found))) == list(range(50))
    alike = [one == other for one, other in zip(found[0]["black"], found[1]["black"], strict=True)]
    assert sum(alike) < 5
    assert sorted(itertools.chain(*(part["predicted"] for part in found))) == list(range(17))
    for name, count in (("validate", 21), ("test", 17)):
        parts, means = zip(*(part[name] for part in found), strict=True)
        assert sorted(itertools.chain(*itertools.chain(*parts))) == list(range(count))
        assert [len(part) for part in parts] == [2, 2]
        assert means == pytest.approx([(count - 1) / 2] * 2, rel=1e-6)
    assert [part["digits"] for part in found] == [[64, 64, 22]] * 2
