"""A small tree of images, each of one gray value of its own, and what an ImageFolder makes of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from lightning_znorm.vision import ImageFolder

COUNTS = {"train": 10, "valid": 3, "test": 2}


def picture(split, label, number, side=12):
    return np.full((side, side, 3), 80 * label + 20 * list(COUNTS).index(split) + number, np.uint8)


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


def plant():
    for split, count in COUNTS.items():
        for label, name in enumerate(("ant", "bee")):
            folder = Path("tree", split, name)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(split, label, number)).save(folder / f"{number}.png")
    return Path("tree")
