"""A small folder like that of the LGG data set, and what an LGGSegmentation makes of it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_znorm.vision import LGGSegmentation

COUNT, SIDE, SLICES = 8, 32, 4
SPLITS = ("train", "val", "test")


def patient(number):
    return f"TCGA_AB_{number:04d}_19990101"


def pixels(number, slice_):
    """Slices that differ between patients; 2 and 3 of them have a tumour."""
    rng = np.random.default_rng(10 * number + slice_)
    image = rng.integers(10 * number, 10 * number + 60, size=(SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if slice_ in (2, 3):
        mask[8:16, 4:20] = 255
    return image, mask


def plant_patients():
    folder = Path("kaggle_3m")
    for number in range(COUNT):
        own = folder / patient(number)
        own.mkdir(parents=True)
        for slice_ in range(1, SLICES + 1):
            image, mask = pixels(number, slice_)
            Image.fromarray(image).save(own / f"{own.name}_{slice_}.tif")
            Image.fromarray(mask).save(own / f"{own.name}_{slice_}_mask.tif")
    rows = [f"{patient(number)[:12]},1" for number in range(COUNT)]
    (folder / "data.csv").write_text("\n".join(["Patient,death01", *rows]) + "\n")
    (folder / "README.md").write_text("not a patient")
    return folder


def made(root="kaggle_3m", **arguments):
    return LGGSegmentation(root, **{"image_size": SIDE, "augment": False, "patients": False, **arguments})


def ready(**arguments):
    module = made(**arguments)
    module.setup()
    return module


def images(module, split):
    return torch.cat([batch for batch, _ in getattr(module, f"{split}_dataloader")()])
