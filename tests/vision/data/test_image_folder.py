from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_znorm.vision import ImageFolder
from lightning_znorm.vision.data.image_folder import Files

COUNTS = {"train": 10, "valid": 3, "test": 2}


def picture(split, label, number, side=12):
    return np.full((side, side, 3), 80 * label + 20 * list(COUNTS).index(split) + number, np.uint8)


@pytest.fixture
def tree():
    for split, count in COUNTS.items():
        for label, name in enumerate(("ant", "bee")):
            folder = Path("tree", split, name)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(split, label, number)).save(folder / f"{number}.png")
    return Path("tree")


def made(**arguments):
    defaults = {"augment": "none", "num_workers": 0, "mean": (0, 0, 0), "std": (1 / 255,) * 3}
    return ImageFolder("tree", **{**defaults, **arguments})


def ready(**arguments):
    module = made(**arguments)
    module.setup()
    return module


def values(module, split):
    """The grey value of each image, and its label."""
    found = []
    for images, labels in getattr(module, f"{split}_dataloader")():
        found += zip(images.round().amax(dim=(1, 2, 3)).int().tolist(), labels.tolist(), strict=True)
    return found


def expected(split):
    return [(int(picture(split, label, number)[0, 0, 0]), label) for label in (0, 1) for number in range(COUNTS[split])]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("valid", ["valid", "val"])
def test_reads_the_tree(tree, on_device, valid):
    (tree / "valid").rename(tree / valid)
    module = ready(on_device=on_device)
    assert sorted(values(module, "train")) == expected("train")
    assert values(module, "val") == expected("valid")
    assert values(module, "test") == expected("test")
    assert module.classes == ["ant", "bee"]


def test_holds_out_a_share_of_each_class(tree):
    for path in (tree / "valid").rglob("*.png"):
        path.unlink()
    for path in (tree / "valid" / "ant", tree / "valid" / "bee", tree / "valid"):
        path.rmdir()
    module = ready(val_share=0.3)
    train, val = values(module, "train"), values(module, "val")
    assert sorted(train + val) == expected("train")
    assert [sum(label == own for _, label in val) for own in (0, 1)] == [3, 3]
    assert val == values(ready(val_share=0.3), "val")
    assert val != values(ready(val_share=0.3, seed=7), "val")


def test_fewer_images_for_evaluation(tree):
    module = ready(eval_per_class=2)
    assert len(values(module, "train")) == 20
    val = values(module, "val")
    assert set(val) < set(expected("valid"))
    assert [label for _, label in val] == [0, 0, 1, 1]
    assert any(values(ready(eval_per_class=2, seed=seed), "val") != val for seed in range(5))
    assert values(ready(eval_per_class=99), "test") == expected("test")


def test_default_standardization(tree):
    module = ImageFolder("tree", augment="none", num_workers=0, batch_size=1)
    module.setup("test")
    images, _ = next(iter(module.test_dataloader()))
    grey = picture("test", 0, 0)[0, 0, 0] / 255
    torch.testing.assert_close(
        images[0, :, 0, 0], (grey - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )


@pytest.mark.parametrize(
    ("augment", "kind"),
    [
        ("none", "NoneType"),
        ("flip_and_crop", "FlipAndCrop"),
        ("flip_and_rotate", "FlipAndRotate"),
        ("quarter_turns", "QuarterTurns"),
    ],
)
@pytest.mark.parametrize("on_device", [False, True])
def test_augmentations(tree, augment, kind, on_device):
    module = ready(augment=augment, on_device=on_device)
    assert type(module.augmentation).__name__ == kind
    images, _ = next(iter(module.train_dataloader()))
    assert images.shape == (20, 3, 12, 12)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes_become_rgb(tree, mode):
    path = tree / "test" / "ant" / "0.png"
    with Image.open(path) as image:
        image.convert(mode).save(path)
    assert values(ready(), "test") == expected("test")


class TestCache:
    def test_serves_the_next_module(self, tree, monkeypatch):
        first = ready(on_device=True, cache="cache")
        assert values(first, "test") == expected("test")
        assert len(list(Path("cache").glob("*.pt"))) == 3
        with monkeypatch.context() as context:
            context.setattr(Files, "__getitem__", None)  # nothing is decoded
            second = ready(on_device=True, cache="cache")
            assert sorted(values(second, "train")) == expected("train")
            assert values(second, "val") == expected("valid")

    def test_changed_files_are_decoded_anew(self, tree):
        ready(on_device=True, cache="cache")
        Image.fromarray(picture("test", 1, 7)).save(tree / "test" / "ant" / "1.png")
        assert values(ready(on_device=True, cache="cache"), "test")[1] == (int(picture("test", 1, 7)[0, 0, 0]), 0)

    def test_other_size_and_seed(self, tree):
        ready(on_device=True, cache="cache")
        images, _ = next(iter(ready(on_device=True, cache="cache", image_size=6).test_dataloader()))
        assert images.shape[-1] == 6

    def test_interrupted(self, tree, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr("lightning_znorm.vision.data.image_folder.os.replace", interrupt)
            with pytest.raises(KeyboardInterrupt):
                ready(on_device=True, cache="cache")
        assert not list(Path("cache").glob("*.pt"))
        assert values(ready(on_device=True, cache="cache"), "test") == expected("test")

    @pytest.mark.parametrize("left", [0, 100, 1000, -100])
    def test_damaged(self, tree, left):
        ready(on_device=True, cache="cache")
        for path in Path("cache").glob("test-*.pt"):
            path.write_bytes(path.read_bytes()[:left])
        with pytest.warns(UserWarning, match=r"cache/test-.*\.pt is damaged, and is made anew"):
            again = ready(on_device=True, cache="cache")
        assert values(again, "test") == expected("test")
        assert values(ready(on_device=True, cache="cache"), "test") == expected("test")

    def test_unused_with_workers(self, tree):
        ready(cache="cache")
        assert not Path("cache").exists()


class TestSizes:
    def test_mixed_sizes_are_brought_to_one(self, tree):
        Image.fromarray(np.full((40, 20, 3), 60, np.uint8)).save(tree / "test" / "ant" / "2.jpg")
        module = ready(image_size=16)
        images, _ = next(iter(module.test_dataloader()))
        assert images.shape == (5, 3, 16, 16)
        assert (images[2] - 60).abs().max() <= 1

    @pytest.mark.parametrize("on_device", [False, True])
    def test_mixed_sizes_are_refused_without(self, tree, on_device):
        Image.fromarray(np.zeros((40, 20, 3), np.uint8)).save(tree / "test" / "bee" / "9.png")
        module = ready(on_device=on_device)
        with pytest.raises(ValueError, match=r"9.png has 40 x 20 pixels, but .*0.png has 12 x 12. Set `image_size`"):
            list(module.test_dataloader())


class TestRefusals:
    def test_no_root(self):
        with pytest.raises(FileNotFoundError, match=r"`root` is 'tree'.*no folder.*`train`"):
            ready()

    def test_no_train(self):
        Path("tree", "images").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match=r"tree/train'.*one folder per class"):
            ready()

    def test_no_test(self, tree):
        (tree / "test").rename(tree / "other")
        module = made()
        module.setup("fit")
        with pytest.raises(FileNotFoundError, match=r"no folder tree/test"):
            module.setup("test")

    @pytest.mark.parametrize("split", COUNTS)
    def test_empty_class(self, tree, split):
        for path in (tree / split / "bee").iterdir():
            path.unlink()
        (tree / split / "bee" / "notes.txt").write_text("no image")
        with pytest.raises(FileNotFoundError, match=rf"tree/{split}/bee .*no image.*\.png"):
            ready()

    def test_class_is_missing(self, tree):
        (tree / "test" / "bee").rename(tree / "bee")
        with pytest.raises(FileNotFoundError, match=r"tree/test/bee is missing"):
            ready()

    def test_class_is_unknown(self, tree):
        (tree / "test" / "wasp").mkdir()
        with pytest.raises(ValueError, match=r"tree/test/wasp has no counterpart in `train`"):
            ready()

    def test_one_class(self, tree):
        (tree / "train" / "bee").rename(tree / "bee")
        with pytest.raises(FileNotFoundError, match=r"two class folders in tree/train, but found \['ant'\]"):
            ready()

    def test_corrupt_image(self, tree):
        (tree / "valid" / "ant" / "1.png").write_bytes(b"\x89PNG broken")
        module = ready()
        with pytest.raises(ValueError, match=r"tree/valid/ant/1.png is not a readable image"):
            list(module.val_dataloader())

    def test_image_that_is_too_large(self, tree, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(ValueError, match=r"tree/.*\.\w+ is not a readable image \(Image size"):
            list(ready().test_dataloader())

    @pytest.mark.parametrize("on_device", [False, True])
    def test_quarter_turns_of_what_is_not_square(self, tree, on_device):
        for path in tree.rglob("*.*"):
            if path.is_file():
                Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(path)
        loader = ready(augment="quarter_turns", on_device=on_device).train_dataloader()
        with pytest.raises(ValueError, match=r"square images, but got 8 x 12 .*`image_size`.*`augment`"):
            list(loader)

    def test_too_few_to_hold_out(self, tree):
        (tree / "valid").rename(tree / "other")
        for path in list((tree / "train" / "ant").iterdir())[1:]:
            path.unlink()
        with pytest.raises(ValueError, match=r"tree/train/ant has 1 image.*`valid`"):
            ready()

    @pytest.mark.parametrize(
        ("argument", "value"),
        [("augment", "mixup"), ("val_share", 1.0), ("image_size", 0), ("eval_per_class", 0), ("mean", (0.5,))],
    )
    def test_bad_arguments(self, argument, value):
        with pytest.raises(ValueError, match=f"`{argument}`"):
            made(**{argument: value})
