import math

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from lightning_znorm.vision.data._augmentation import FlipAndCrop, FlipAndRotate, QuarterTurns

ALL = [FlipAndCrop(padding=2), QuarterTurns(), FlipAndRotate(degrees=30)]


def pictures(count=24, size=9):
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8)


def flip_and_crop_one(image, draws, padding):
    image = functional.horizontal_flip(image) if draws[0] < 0.5 else image
    top, left = (int(draw * (2 * padding + 1)) for draw in draws[1:].tolist())
    return functional.crop(functional.pad(image, [padding]), top, left, *image.shape[-2:])


def quarter_turn_one(image, draws):
    image = functional.rotate(image, 90) if draws[0] < 0.5 else image
    image = functional.horizontal_flip(image) if draws[1] < 0.5 else image
    return functional.vertical_flip(image) if draws[2] < 0.5 else image


def flip_and_rotate_one(image, draws, degrees, interpolation):
    image = functional.horizontal_flip(image) if draws[0] < 0.5 else image
    return functional.rotate(image, float((2 * draws[1] - 1) * degrees), interpolation)


class TestBatchEqualsTorchvisionImageByImage:
    def test_flip_and_crop(self):
        images, draws = pictures(), torch.rand(24, 3)
        changed, _ = FlipAndCrop(padding=3)(images, None, draws)
        assert torch.equal(
            changed, torch.stack([flip_and_crop_one(*pair, 3) for pair in zip(images, draws, strict=True)])
        )

    def test_flip_and_crop_of_images_that_are_not_square(self):
        images, draws = torch.randint(256, (8, 3, 5, 11), dtype=torch.uint8), torch.rand(8, 3)
        changed, _ = FlipAndCrop(padding=2)(images, None, draws)
        assert torch.equal(
            changed, torch.stack([flip_and_crop_one(*pair, 2) for pair in zip(images, draws, strict=True)])
        )

    def test_quarter_turns(self):
        images, draws = pictures(), torch.rand(24, 3)
        changed, _ = QuarterTurns()(images, None, draws)
        assert torch.equal(changed, torch.stack([quarter_turn_one(*pair) for pair in zip(images, draws, strict=True)]))

    @pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
    def test_flip_and_rotate(self, shape):
        images = torch.randint(256, (24, 3, *shape), dtype=torch.uint8)
        masks = (images[:, :1] > 127).to(torch.uint8)
        draws = torch.rand(24, 2)
        changed, changed_masks = FlipAndRotate(degrees=20)(images, masks, draws)
        for one, mask, draw, image, own in zip(changed, changed_masks, draws, images, masks, strict=True):
            expected = flip_and_rotate_one(image, draw, 20, InterpolationMode.BILINEAR)
            # torchvision rounds down, and an image's border may fall on either side
            assert ((one.int() - expected.int()).abs() <= 1).float().mean() > 0.99
            nearest = flip_and_rotate_one(own, draw, 20, InterpolationMode.NEAREST)
            assert (mask == nearest).float().mean() > 0.97


@pytest.mark.parametrize("augmentation", ALL, ids=str)
class TestEach:
    def test_mask_moves_with_its_image(self, augmentation):
        images = torch.zeros(16, 1, 32, 32, dtype=torch.uint8)
        images[:, :, 8:20, 10:16] = 255
        masks = (images > 127).to(torch.uint8)
        changed, moved = augmentation(images, masks, torch.rand(16, augmentation.draws))
        assert ((changed > 127) == (moved > 0)).float().mean() > 0.99
        assert not torch.equal(moved, masks)

    def test_each_image_has_its_own_change(self, augmentation):
        images = pictures(1, 16).expand(40, -1, -1, -1)
        changed, _ = augmentation(images, None, torch.rand(40, augmentation.draws))
        assert len(changed.flatten(1).unique(dim=0)) >= 6
        assert changed.dtype == torch.uint8

    def test_inputs_stay(self, augmentation):
        images = pictures()
        before = images.clone()
        augmentation(images, None, torch.rand(24, augmentation.draws))
        assert torch.equal(images, before)


@pytest.mark.parametrize(("augmentation", "outcomes"), [(QuarterTurns(), 8), (FlipAndCrop(padding=1), 18)])
def test_outcomes_are_equally_frequent(augmentation, outcomes):
    count = 4000
    images = pictures(1, 5).expand(count, -1, -1, -1)
    changed, _ = augmentation(images, None, torch.rand(count, augmentation.draws))
    _, inverse = changed.flatten(1).unique(dim=0, return_inverse=True)
    frequencies = inverse.bincount() / count
    assert len(frequencies) == outcomes
    assert (frequencies - 1 / outcomes).abs().max() < 5 * math.sqrt(1 / outcomes / count)
