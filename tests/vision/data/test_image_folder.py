import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image
from torchvision.transforms.v2 import functional

from lightning_znorm.vision import ImageFolder
from tests.vision.data.trees import COUNTS, expected, made, picture, ready, values


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


class TestWindow:
    @pytest.fixture
    def deep(self, tree):
        """The images of the test split, in 16 bits and shifted."""
        for path in (tree / "test").rglob("*.png"):
            with Image.open(path) as image:
                values = np.asarray(image)[..., 0].astype(np.uint16)
            Image.fromarray(values * 10 + 1000).save(path)
        return tree

    @pytest.mark.parametrize("arguments", [{}, {"on_device": True}, {"on_device": True, "cache": "cache"}])
    def test_sixteen_bits(self, deep, arguments):
        assert values(ready(window=[1000, 3550], **arguments), "test") == expected("test")
        assert values(ready(window=(1000, 3550), **arguments), "val") == expected("valid")
        wider = values(ready(window=(1000, 1000 + 5100), **arguments), "test")
        assert [value for value, _ in wider] == [round(value / 2) for value, _ in expected("test")]

    @pytest.mark.parametrize("on_device", [False, True])
    def test_needed(self, deep, on_device):
        with pytest.raises(ValueError, match=r"tree/test/ant/0.png has more than 8 bits.*`window`"):
            list(ready(on_device=on_device).test_dataloader())

    def test_on_the_command_line(self, deep):
        parser = LightningArgumentParser()
        parser.add_subclass_arguments(ImageFolder, "data")
        given = ["--data=lightning_znorm.vision.ImageFolder", "--data.root=tree", "--data.window=[1000, 3550.5]"]
        module = parser.instantiate(parser.parse_args(given)).data
        assert module.window == (1000.0, 3550.5)


class TestSizes:
    def test_mixed_sizes_are_brought_to_one(self, tree):
        Image.fromarray(np.full((40, 20, 3), 60, np.uint8)).save(tree / "test" / "ant" / "2.jpg")
        module = ready(image_size=16)
        images, _ = next(iter(module.test_dataloader()))
        assert images.shape == (5, 3, 16, 16)
        assert (images[2] - 60).abs().max() <= 1

    @pytest.mark.parametrize(("height", "width"), [(20, 40), (41, 20), (5, 4)])
    def test_central_square_is_taken(self, tree, height, width):
        """Of three stripes along the longer side, the middle one is the square."""
        side, length = min(height, width), max(height, width)
        stripes = np.full((side, length, 3), 10, np.uint8)
        start = (length - side) // 2
        stripes[:, start : start + side] = 60
        image = stripes if width == length else stripes.transpose(1, 0, 2)
        Image.fromarray(image).save(tree / "test" / "ant" / "0.png")
        images, _ = next(iter(ready(image_size=16).test_dataloader()))
        assert (images[0] == 60).float().mean() > (0.9 if length % 2 else 0.99)

    def test_long_image_is_not_blown_up(self, tree, monkeypatch):
        Image.new("RGB", (16000, 1), (60, 60, 60)).save(tree / "test" / "ant" / "0.png")
        resize, sizes = functional.resize, []

        def record(image, *args, **kwargs):
            resized = resize(image, *args, **kwargs)
            sizes.append(resized.numel())
            return resized

        monkeypatch.setattr(functional, "resize", record)
        images, _ = next(iter(ready(image_size=64).test_dataloader()))
        assert (images[0] == 60).all()
        assert max(sizes) == 3 * 64 * 64

    def test_square_images_are_resized_as_a_whole(self, tree):
        array = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
        Image.fromarray(array).save(tree / "test" / "ant" / "0.png")
        images, _ = next(iter(ready(image_size=16).test_dataloader()))
        whole = torch.from_numpy(array).permute(2, 0, 1)
        assert torch.equal(images[0].round(), functional.resize(whole, [16, 16], antialias=True).float())

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
        with pytest.raises(FileNotFoundError, match=r"no folder tree/train.*`root`.*one folder per class"):
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
        with pytest.raises(ValueError, match=r"tree/test/wasp has no counterpart in tree/train"):
            ready()

    def test_one_class(self, tree):
        (tree / "train" / "bee").rename(tree / "bee")
        with pytest.raises(FileNotFoundError, match=r"two class folders in tree/train, but found \['ant'\]"):
            ready()

    @pytest.mark.parametrize("content", [b"\x89PNG broken", b"", b"<html>404</html>", None])
    @pytest.mark.parametrize("on_device", [False, True])
    def test_corrupt_image(self, tree, on_device, content):
        path = tree / "valid" / "ant" / "1.png"
        path.write_bytes(path.read_bytes()[:45] if content is None else content)
        module = ready(on_device=on_device)
        with pytest.raises(ValueError, match=r"tree/valid/ant/1.png is not a readable image"):
            list(module.val_dataloader())

    def test_link_to_nothing(self, tree):
        (tree / "valid" / "ant" / "9.png").symlink_to("nowhere.png")
        with pytest.raises(ValueError, match=r"tree/valid/ant/9.png is not a readable image"):
            list(ready().val_dataloader())
        with pytest.raises(ValueError, match=r"tree/valid/ant/9.png is not a readable image"):
            ready(on_device=True, cache="cache")

    def test_image_that_is_too_large(self, tree, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match=r"tree/.*\.png has more than 100 pixels \(12 x 12\).*MAX_IMAGE_PIXELS"):
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
        [
            ("augment", "mixup"),
            ("val_share", 1.0),
            ("image_size", 0),
            ("eval_per_class", 0),
            ("mean", (0.5,)),
            ("window", (1, 1)),
            ("window", (2, 1)),
            ("window", (0, math.inf)),
            ("window", (math.nan, 1)),
            ("window", (0, 1, 2)),
            ("window", 4095),
            ("window", ("low", "high")),
        ],
    )
    def test_bad_arguments(self, argument, value):
        with pytest.raises(ValueError, match=f"`{argument}`"):
            made(**{argument: value})
