"""A data module whose images tell their numbers."""

import pytest
import torch

from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, Tensors

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
