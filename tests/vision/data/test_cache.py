"""Decoded splits that an ImageFolder keeps for the next process."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_znorm.vision import ImageFolder
from lightning_znorm.vision.data.image_folder import Files
from tests.vision.data.trees import expected, picture, ready, values


def test_serves_the_next_module(tree, monkeypatch):
    first = ready(on_device=True, cache="cache")
    assert values(first, "test") == expected("test")
    assert len(list(Path("cache").glob("*.pt"))) == 3
    with monkeypatch.context() as context:
        context.setattr(Files, "__getitem__", None)  # nothing is decoded
        second = ready(on_device=True, cache="cache")
        assert sorted(values(second, "train")) == expected("train")
        assert values(second, "val") == expected("valid")


def test_changed_files_are_decoded_again(tree):
    ready(on_device=True, cache="cache")
    Image.fromarray(picture("test", 1, 7)).save(tree / "test" / "ant" / "1.png")
    assert values(ready(on_device=True, cache="cache"), "test")[1] == (int(picture("test", 1, 7)[0, 0, 0]), 0)


def test_other_size_and_seed(tree):
    ready(on_device=True, cache="cache")
    images, _ = next(iter(ready(on_device=True, cache="cache", image_size=6).test_dataloader()))
    assert images.shape[-1] == 6


def test_interrupted(tree, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("lightning_znorm.vision.data._cache.os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ready(on_device=True, cache="cache")
    assert not list(Path("cache").glob("*.pt"))
    assert values(ready(on_device=True, cache="cache"), "test") == expected("test")


@pytest.mark.parametrize("left", [0, 100, 1000, -100])
def test_damaged(tree, left):
    ready(on_device=True, cache="cache")
    for path in Path("cache").glob("test-*.pt"):
        path.write_bytes(path.read_bytes()[:left])
    with pytest.warns(UserWarning, match=r"cache/test-.*\.pt is damaged or does not fit .*made again"):
        again = ready(on_device=True, cache="cache")
    assert values(again, "test") == expected("test")
    assert values(ready(on_device=True, cache="cache"), "test") == expected("test")


def test_unused_with_workers(tree):
    ready(cache="cache")
    assert not Path("cache").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def images(*shape, dtype=torch.uint8):
    return torch.ones(shape, dtype=dtype)


LABELS = torch.tensor([0, 0, 1, 1])
RIGHT = images(4, 3, 12, 12)
WRONG = {
    "other length": {"images": images(3, 3, 12, 12), "targets": LABELS[:3]},
    "fewer images": {"images": images(3, 3, 12, 12), "targets": LABELS},
    "other size": {"images": images(4, 3, 13, 12), "targets": LABELS},
    "one channel": {"images": images(4, 1, 12, 12), "targets": LABELS},
    "three dimensions": {"images": images(4, 3, 12), "targets": LABELS},
    "floats": {"images": images(4, 3, 12, 12, dtype=torch.float32), "targets": LABELS},
    "other labels": {"images": RIGHT, "targets": 1 - LABELS},
    "labels of another type": {"images": RIGHT, "targets": LABELS.int()},
    "labels of another shape": {"images": RIGHT, "targets": LABELS[:, None]},
    "no labels": {"images": RIGHT},
    "one key too many": {"images": RIGHT, "targets": LABELS, "more": LABELS},
    "lists": {"images": [1], "targets": [2]},
    "nothing": {"images": None, "targets": None},
    "a list": [1],
    "a tensor": RIGHT,
    "a number": 1,
    "code": {"images": Evil(), "targets": LABELS},
    "only code": Evil(),
}


@pytest.mark.parametrize("size", [None, 12])
@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_other_content(tree, content, size):
    if size is None and content is WRONG["other size"]:
        content = {"images": images(4, 3, 0, 12), "targets": LABELS}
    arguments = {"on_device": True, "cache": "cache", "image_size": size}
    ready(**arguments)
    (path,) = Path("cache").glob("test-*.pt")
    torch.save(content, path)
    with pytest.warns(UserWarning, match=rf"{path} is damaged or does not fit .*made again"):
        again = ready(**arguments)
    assert values(again, "test") == expected("test")
    assert not Path("executed").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(**arguments)


class TestOutdated:
    """Files are replaced when images change, not when others are asked for."""

    def files(self):
        return {path for path in Path("cache").iterdir() if path.name != ".lock"}

    def make(self, **arguments):
        before = self.files() if Path("cache").exists() else set()
        module = ready(**{"on_device": True, "cache": "cache", **arguments})
        return module, before - self.files(), self.files() - before

    def test_changed_images(self, tree):
        self.make()
        Image.fromarray(picture("test", 1, 7)).save(tree / "test" / "ant" / "2.png")
        module, gone, new = self.make()
        assert [path.name[:5] for path in (*gone, *new)] == ["test-", "test-"]
        assert len(values(module, "test")) == 5

    def test_rest_of_an_interruption(self, tree):
        _, _, made = self.make()
        (test,) = (path for path in made if path.name.startswith("test-"))
        test.rename(test.with_suffix(".part"))
        (tree / "test" / "ant" / "0.png").touch()
        _, gone, new = self.make()
        assert gone == {test.with_suffix(".part")}
        assert len(new) == 1

    @pytest.mark.parametrize(
        "arguments",
        [{"image_size": 6}, {"window": (0, 1)}, {"eval_per_class": 1}, {"eval_per_class": 1, "seed": 1}],
    )
    def test_other_settings(self, tree, arguments):
        self.make()
        _, gone, new = self.make(**arguments)
        assert gone == set()
        assert len(new) == (2 if "eval_per_class" in arguments else 3)
        assert self.make()[1:] == (set(), set())

    @pytest.mark.parametrize("arguments", [{"val_share": 0.3}, {"seed": 1}])
    def test_other_images_held_out(self, tree, arguments):
        shutil.rmtree(tree / "valid")
        self.make()
        _, gone, new = self.make(**arguments)
        assert gone == set()
        assert {path.name.split("-")[0] for path in new} == {"train", "val"}

    def test_same_images_are_shared(self, tree):
        self.make()
        assert self.make(seed=1, val_share=0.3, batch_size=3, mean=(1, 1, 1))[1:] == (set(), set())

    def test_other_root(self, tree):
        self.make()
        shutil.copytree(tree, "copy")
        module = ImageFolder("copy", on_device=True, cache="cache", num_workers=0)
        before = self.files()
        module.setup()
        assert before < self.files()
        assert len(self.files()) == 6
