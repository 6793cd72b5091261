import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from torchmetrics import MeanMetric

from lightning_znorm.vision.data._augmentation import FlipAndCrop, FlipAndRotate, QuarterTurns
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, Tensors
from tests.helpers import QUIET

ROOT = Path(__file__).parents[3]
SIZES = {"train": 50, "val": 21, "test": 17}


class Numbered:
    """Samples that are not in memory; each image has its number in all pixels."""

    def __init__(self, count, masks=False):
        self.count, self.masks = count, masks

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full((3, 4, 4), index % 256, dtype=torch.uint8)
        return image, (image[:1] % 2 if self.masks else torch.tensor(index))


class Module(ImageDataModule):
    def __init__(
        self, batch_size=8, augmentation=None, num_workers=0, on_device=False, seed=0, masks=False, cases=None
    ):
        super().__init__(batch_size, augmentation, num_workers, on_device, seed)
        self.masks = masks
        self.cases = cases
        self.loaded = []

    def load(self, name):
        self.loaded.append(name)
        samples = Numbered(SIZES[name], self.masks)
        if name == "val":  # in memory, and standardized by figures of each image
            images, targets = (torch.stack(parts) for parts in zip(*map(samples.__getitem__, range(21)), strict=True))
            offset = torch.arange(21.0)[:, None].expand(21, 3)
            return Split(Tensors(images, targets), offset, offset + 1, self.cases)
        return Split(samples, torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 8.0]]))


def ready(**arguments):
    module = Module(**arguments)
    module.setup()
    return module


def labels(loader):
    return torch.cat([targets for _, targets in loader]).tolist()


BOTH = pytest.mark.parametrize("on_device", [False, True])


class TestBatches:
    @BOTH
    @pytest.mark.parametrize("masks", [False, True])
    def test_values_and_dtypes(self, on_device, masks):
        images, targets = next(iter(ready(on_device=on_device, masks=masks).test_dataloader()))
        assert (images.dtype, targets.dtype) == (torch.float32, torch.float32 if masks else torch.int64)
        assert (type(images), type(targets)) == (torch.Tensor, torch.Tensor)
        assert images.shape == (8, 3, 4, 4)
        number = torch.arange(8.0)[:, None, None, None]
        mean, std = torch.tensor([1.0, 2.0, 3.0])[:, None, None], torch.tensor([2.0, 4.0, 8.0])[:, None, None]
        assert torch.equal(images, ((number - mean) / std).expand_as(images))
        expected = (number % 2).expand(8, 1, 4, 4) if masks else torch.arange(8)
        assert torch.equal(targets, expected)

    @BOTH
    def test_standardized_by_its_own_figures(self, on_device):
        for images, _ in ready(on_device=on_device).val_dataloader():
            assert torch.equal(images, torch.zeros_like(images))

    @BOTH
    @pytest.mark.parametrize("split", SIZES)
    def test_every_sample_once(self, on_device, split):
        module = ready(on_device=on_device)
        loader = getattr(module, f"{split}_dataloader")()
        found = labels(loader)
        assert sorted(found) == list(range(SIZES[split]))
        assert (found == sorted(found)) == (split != "train")
        assert len(loader) == len(list(loader)) == -(-SIZES[split] // 8)

    @BOTH
    def test_order_is_new_each_epoch_and_follows_the_seeds(self, on_device):
        def epochs(seed, own):
            seed_everything(seed, verbose=False)
            loader = ready(on_device=on_device, seed=own).train_dataloader()
            return labels(loader), labels(loader)

        first = epochs(1, 0)
        assert first[0] != first[1]
        assert first == epochs(1, 0)
        assert first != epochs(2, 0)
        assert first != epochs(1, 1)

    @BOTH
    def test_only_training_is_augmented(self, on_device):
        module = ready(on_device=on_device, augmentation=FlipAndCrop(padding=3))
        black = (torch.zeros(3) - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0])
        shares = {
            split: torch.cat([images for images, _ in getattr(module, f"{split}_dataloader")()])
            for split in ("train", "test")
        }
        is_black = {split: (images == black[:, None, None]).all(dim=1) for split, images in shares.items()}
        assert is_black["train"].float().mean() > 0.2
        assert is_black["test"].float().mean() == 1 / 17

    @BOTH
    def test_augmentation_follows_the_seed(self, on_device):
        def first_epoch(seed):
            seed_everything(seed, verbose=False)
            augmentation = FlipAndCrop(padding=3)
            loader = ready(on_device=on_device, augmentation=augmentation, batch_size=50).train_dataloader()
            images, numbers = next(iter(loader))
            return images[numbers.argsort()]  # apart from their order

        assert torch.equal(first_epoch(3), first_epoch(3))
        assert not torch.equal(first_epoch(3), first_epoch(4))

    @pytest.mark.slow
    @pytest.mark.parametrize("augmentation", [FlipAndCrop(padding=3), QuarterTurns(), FlipAndRotate(degrees=40)])
    @pytest.mark.parametrize("masks", [False, True])
    def test_the_same_batches_wherever_they_are_made(self, augmentation, masks):
        def epochs(**arguments):
            seed_everything(3, verbose=False)
            loader = ready(augmentation=augmentation, masks=masks, **arguments).train_dataloader()
            found = []
            for _ in range(2):
                for batch in loader:
                    torch.rand(7)  # as a layer with dropout takes them, while it trains
                    found += batch
            return found

        here, workers, device = epochs(), epochs(num_workers=2), epochs(on_device=True)
        assert len(here) == len(workers) == len(device) == 2 * 2 * 7
        for one, other, third in zip(here, workers, device, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)

    @BOTH
    def test_augmentation_leaves_the_global_generator_alone(self, on_device):
        def state_after_an_epoch(augmentation):
            seed_everything(3, verbose=False)
            for _ in ready(on_device=on_device, augmentation=augmentation).train_dataloader():
                pass
            return torch.get_rng_state()

        assert torch.equal(state_after_an_epoch(None), state_after_an_epoch(FlipAndCrop()))

    @pytest.mark.parametrize("index", [3, numpy.int64(3), torch.tensor(3)])
    def test_single_samples_by_any_integer(self, index):
        dataset = ready(augmentation=FlipAndCrop()).train_dataloader().dataset
        assert dataset[index][1] == 3
        assert dataset[index][0].shape == (3, 4, 4)

    @BOTH
    def test_cases_are_the_third_part_in_evaluation(self, on_device):
        cases = torch.arange(21) // 4
        module = ready(on_device=on_device, cases=cases)
        parts = list(module.val_dataloader())
        assert torch.equal(torch.cat([numbers for _, _, numbers in parts]), cases)
        assert {len(batch) for batch in module.train_dataloader()} == {2}
        assert {len(batch) for batch in module.test_dataloader()} == {2}  # has none

    @pytest.mark.slow
    def test_workers_read_the_same(self):
        assert labels(ready(num_workers=2).test_dataloader()) == list(range(17))
        assert labels(ready(num_workers=2, on_device=True).test_dataloader()) == list(range(17))


class TestSetup:
    @pytest.mark.parametrize(
        ("stage", "loaded"),
        [
            ("fit", ["train", "val"]),
            ("validate", ["val"]),
            ("test", ["test"]),
            ("predict", ["test"]),
            (None, ["train", "val", "test"]),
        ],
    )
    def test_loads_what_a_stage_needs_once(self, stage, loaded):
        module = Module()
        module.setup(stage)
        module.setup(stage)
        assert module.loaded == loaded

    @pytest.mark.parametrize(("argument", "value"), [("batch_size", 0), ("num_workers", -1)])
    def test_bad_arguments(self, argument, value):
        with pytest.raises(ValueError, match=f"`{argument}`.*{value}"):
            Module(**{argument: value})

    def test_workers_by_default(self):
        assert 1 <= Module(num_workers=None).num_workers <= 8

    def test_reading_holds_few_files(self):
        """What the workers send has open files for as long as it is kept."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, before[1]))
        try:
            whole = Module(num_workers=1).read_whole("train", Numbered(100 * 256))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert whole.targets.tolist() == list(range(100 * 256))
        assert torch.equal(whole.images[:, 0, 0, 0], whole.targets.to(torch.uint8))

    def test_empty_split(self):
        with pytest.raises(ValueError, match="test split of Module is empty"):
            Module().read_whole("test", Numbered(0))

    def test_read_once_and_kept(self):
        module = ready(on_device=True)
        assert module.test_dataloader().split is module.predict_dataloader().split


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
from tests.vision.data.test_images import Collect, Module

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
@pytest.mark.parametrize(("on_device", "workers"), [(False, 0), (False, 1), (True, 0)])
def test_ddp_shares_the_samples(on_device, workers):
    """Every sample once, each rank with an augmentation of its own, though nobody has seeded them."""
    Path("train.py").write_text(DDP.format(root=str(ROOT), on_device=on_device, workers=workers))
    done = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
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
    assert "DistributedSampler" not in done.stderr
