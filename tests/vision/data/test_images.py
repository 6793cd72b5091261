import resource
from pathlib import Path

import numpy
import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_znorm.vision.data._augmentation import FlipAndCrop, FlipAndRotate, QuarterTurns
from tests.vision.data.numbered import BOTH, SIZES, Module, Numbered, labels, ready

ROOT = Path(__file__).parents[3]


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
