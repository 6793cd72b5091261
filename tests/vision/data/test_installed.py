import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lightning_znorm.vision import BrainMRI, Digits
from lightning_znorm.vision.data.brain_mri import load_template, split_into_blocks

SPLITS = ("train", "val", "test")


def loaded(datamodule):
    datamodule.setup()
    return datamodule


def tensors(datamodule, split):
    samples = datamodule._splits[split]
    return samples.prepare(torch.arange(len(samples)))


class TestDigits:
    def test_splits_are_disjoint_complete_and_in_proportion(self):
        digits = loaded(Digits(image_size=8))
        sizes = [len(tensors(digits, split)[1]) for split in SPLITS]
        assert sizes == [1197, 300, 300]
        images = torch.cat([tensors(digits, split)[0] for split in SPLITS]).flatten(1)
        from sklearn.datasets import load_digits

        raw = torch.from_numpy(load_digits().data).float()
        assert len(images.unique(dim=0)) == len(raw.unique(dim=0)) == 1797
        for split in SPLITS:
            share = tensors(digits, split)[1].bincount(minlength=10) / len(tensors(digits, split)[1])
            assert (share - 0.1).abs().max() < 0.01

    def test_ranks_share_the_evaluation(self):
        digits, labels, batches = loaded(Digits(image_size=8, batch_size=6)), [], set()
        for rank in range(7):
            digits.trainer = SimpleNamespace(
                distributed_sampler_kwargs={"num_replicas": 7, "rank": rank},
                strategy=SimpleNamespace(root_device=torch.device("cpu")),
            )
            parts = [targets for _, targets in digits.test_dataloader()]
            labels += torch.cat(parts).tolist()
            batches.add(len(parts))
        assert sorted(labels) == sorted(tensors(digits, "test")[1].tolist())
        assert len(batches) == 1

    def test_training_images_are_standardized(self):
        images, labels = tensors(loaded(Digits()), "train")
        assert images.shape == (1197, 1, 32, 32)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.mean().abs() < 1e-5
        assert images.std() == pytest.approx(1, abs=1e-5)

    def test_size_eight_leaves_the_pixels(self):
        from sklearn.datasets import load_digits

        images, _ = tensors(loaded(Digits(image_size=8)), "train")
        raw = torch.from_numpy(load_digits().images).float()
        first = images[0, 0]
        scale = (raw.max() - 0) / (images.max() - images.min())
        restored = ((first - images.min()) * scale).round()
        assert any(torch.equal(restored, picture) for picture in raw)


class TestBrainMRI:
    def test_shapes_and_values(self):
        brain = loaded(BrainMRI(image_size=64))
        images, masks = tensors(brain, "train")
        assert images.shape[1:] == (1, 64, 64)
        assert masks.shape == (len(images), 2, 64, 64)
        assert set(masks.unique().tolist()) == {0, 1}
        assert images.mean().abs() < 1e-4
        assert images.std() == pytest.approx(1, abs=1e-4)
        for split, least in zip(SPLITS, (60, 15, 15), strict=True):
            images, masks = tensors(brain, split)
            assert len(images) >= least
            assert (masks.mean(dim=(0, 2, 3)) > 0.02).all()

    def test_white_matter_is_brighter_than_grey(self):
        images, masks = tensors(loaded(BrainMRI(image_size=96)), "test")
        grey, white = masks[:, :1].bool(), masks[:, 1:].bool()
        assert images[white].mean() > images[grey].mean() > images[~(grey | white)].mean()

    @pytest.mark.parametrize("image_size", [64, 96])
    def test_intensity_alone_predicts_the_masks(self, image_size):
        """As the documentation says: this is no benchmark."""
        brain = loaded(BrainMRI(image_size=image_size))
        images, masks = tensors(brain, "train")
        edges = torch.linspace(images.min(), images.max(), 65)
        places = torch.bucketize(images, edges)[:, 0]
        counts = torch.zeros(66).index_add(0, places.flatten(), torch.ones(places.numel()))
        images, truth = tensors(brain, "test")
        for tissue, dice in ((0, 0.95), (1, 0.98)):
            covered = torch.zeros(66).index_add(0, places.flatten(), masks[:, tissue].flatten())
            predicted = ((covered / counts.clamp(min=1)) > 0.5)[torch.bucketize(images, edges)[:, 0]].float()
            found = 2 * (predicted * truth[:, tissue]).sum() / (predicted.sum() + truth[:, tissue].sum())
            assert found == pytest.approx(dice, abs=0.006)

    def test_orientation(self):
        """The cerebellum is low and at the back; the head is nearly symmetric from left to right."""
        volume = load_template()
        brain = volume[:, 1:].sum(dim=1) > 0.5
        rows = torch.arange(brain.shape[1])
        low, high = brain[20:35].float().sum(dim=(0, 2)), brain[90:105].float().sum(dim=(0, 2))
        assert (low * rows).sum() / low.sum() > (high * rows).sum() / high.sum()
        middle = volume[90, 0]
        assert (middle - middle.flip(1)).abs().mean() < 0.02 < (middle - middle.flip(0)).abs().mean()

    @pytest.mark.parametrize("count", [35, 100, 151])
    @pytest.mark.parametrize("gap", [0, 1, 2])
    def test_blocks_are_whole_and_apart(self, count, gap):
        split = split_into_blocks(count, gap)
        for name in ("val", "test"):
            assert split[name] == list(range(split[name][0], split[name][-1] + 1))
            assert len(split[name]) in (count // 7, count // 7 + 1)
            assert min(abs(i - j) for i in split["train"] for j in split[name]) == gap + 1
        everything = sorted(index for indices in split.values() for index in indices)
        assert everything == sorted(set(everything))
        assert len(everything) == count - 4 * gap

    def test_a_gap_that_leaves_nothing(self):
        with pytest.raises(ValueError, match="Argument `gap` is 40, which leaves only"):
            loaded(BrainMRI(gap=40))


@pytest.mark.parametrize("make", [lambda **kw: Digits(image_size=8, **kw), lambda **kw: BrainMRI(image_size=32, **kw)])
class TestBoth:
    def test_training_order_is_the_seeds_own(self, make):
        def order(seed, disturb=0):
            loader = loaded(make(seed=seed)).train_dataloader()
            torch.rand(disturb)
            return [[batch[1].float().sum().item() for batch in loader] for _ in range(2)]

        assert order(0) == order(0, disturb=17)
        assert order(0)[0] != order(0)[1]
        assert order(0) != order(1)

    def test_training_order_follows_the_global_seed(self, make):
        def order(seed):
            torch.manual_seed(seed)
            return [batch[1].float().sum().item() for batch in loaded(make()).train_dataloader()]

        assert order(3) == order(3)
        assert order(3) != order(4)

    def test_held_out_order_is_fixed(self, make):
        datamodule = loaded(make())
        for loader in (datamodule.val_dataloader(), datamodule.test_dataloader(), datamodule.predict_dataloader()):
            assert torch.equal(next(iter(loader))[0], next(iter(loader))[0])

    @pytest.mark.parametrize(("argument", "value"), [("batch_size", 0), ("num_workers", -1), ("image_size", 4)])
    def test_wrong_arguments(self, make, argument, value):
        cls = type(make())
        with pytest.raises(ValueError, match=f"`{argument}` to be an integer of at least .*, but got {value}"):
            cls(**{argument: value})

    def test_missing_extra(self, make, monkeypatch):
        monkeypatch.setattr("lightning_znorm.errors.find_spec", lambda name: None)
        with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning-znorm\[demo\]"'):
            make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "name", "distribution"),
    [
        ("torchvision", "ImageClassifier", "torchvision"),
        ("segmentation_models_pytorch", "SemanticSegmenter", "segmentation-models-pytorch"),
    ],
)
def test_missing_vision_extra(missing, name, distribution):
    program = f"import sys, lightning_znorm; sys.modules[{missing!r}] = None; from lightning_znorm.vision import {name}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"needs {distribution}, which is not installed" in done.stderr
    assert 'pip install "lightning-znorm[vision]"' in done.stderr


@pytest.mark.slow
def test_the_package_itself_is_light():
    program = "import sys, lightning_znorm.vision.data; print('sklearn' in sys.modules, 'nilearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert importlib.util.find_spec("nilearn")
