import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_znorm.vision.data._augmentation import FlipAndCrop, QuarterTurns
from lightning_znorm.vision.data._images import ImageDataModule, Split, Tensors
from lightning_znorm.vision.data._on_device import DeviceLoader, Resident
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
        image = torch.full((3, 4, 4), index, dtype=torch.uint8)
        return image, (image[:1] % 2 if self.masks else torch.tensor(index))


class Module(ImageDataModule):
    def __init__(self, batch_size=8, augmentation=None, num_workers=0, on_device=False, seed=0, masks=False):
        super().__init__(batch_size, augmentation, num_workers, on_device, seed)
        self.masks = masks
        self.loaded = []

    def load(self, name):
        self.loaded.append(name)
        samples = Numbered(SIZES[name], self.masks)
        if name == "val":  # in memory, and standardized by figures of each image
            images, targets = (torch.stack(parts) for parts in zip(*map(samples.__getitem__, range(21)), strict=True))
            offset = torch.arange(21.0)[:, None].expand(21, 3)
            return Split(Tensors(images, targets), offset, offset + 1)
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
            loader = ready(on_device=on_device, augmentation=QuarterTurns(), masks=True).train_dataloader()
            return torch.cat([images for images, _ in loader])

        assert torch.equal(first_epoch(3), first_epoch(3))

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

    def test_read_once_and_kept(self):
        module = ready(on_device=True)
        assert module.test_dataloader().split is module.predict_dataloader().split


class TestRanks:
    def resident(self):
        return Resident(
            torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10), torch.zeros(1, 3), torch.ones(1, 3)
        )

    @pytest.mark.parametrize("shuffle", [False, True])
    def test_ranks_share_an_epoch(self, shuffle):
        parts = []
        for rank in range(4):
            generator = torch.Generator().manual_seed(5) if shuffle else None
            loader = DeviceLoader(self.resident(), 2, None, generator, rank, world_size=4)
            parts.append(labels(loader))
            assert len(loader) == len(list(loader)) == 2
        assert {len(part) for part in parts} == {3}
        joined = sorted(itertools.chain(*parts))
        assert set(joined) == set(range(10))
        assert len(joined) == 12


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


DDP = """
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, {root!r})
from tests.vision.data.test_images import Module

class Collect(BoringModel):
    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen += batch[1].tolist()
        return self.layer(torch.ones(1, 32)).sum()

    def validation_step(self, batch, batch_idx):
        pass

if __name__ == "__main__":
    model = Collect()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, datamodule=Module(on_device=True))
    Path(f"rank{{trainer.global_rank}}.txt").write_text(" ".join(map(str, model.seen)))
"""


@pytest.mark.slow
def test_ddp_shares_what_is_on_the_devices():
    Path("train.py").write_text(DDP.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = [list(map(int, Path(f"rank{rank}.txt").read_text().split())) for rank in (0, 1)]
    assert [len(part) for part in seen] == [25, 25]
    assert sorted(itertools.chain(*seen)) == list(range(50))
