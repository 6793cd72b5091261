import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm.vision import SemanticSegmenter
from tests.helpers import make_trainer

MODES = [("binary", 1), ("multilabel", 2), ("multiclass", 3)]


def tiny(mode="binary", classes=1, **kwargs):
    return SemanticSegmenter("Unet", "mobilenet_v2", num_classes=classes, mode=mode, **kwargs)


def data(mode, classes, samples=5, size=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, size, size, generator=generator)
    if mode == "multiclass":
        masks = torch.randint(classes, (samples, size, size), generator=generator)
    else:
        masks = (torch.rand(samples, classes, size, size, generator=generator) > 0.7).float()
        masks[0] = 0  # a slice with nothing on it
    return TensorDataset(images, masks)


def counts(predicted, target):
    """True and false positives, true and false negatives of a boolean mask."""
    pairs = ((predicted, target), (predicted, ~target), (~predicted, ~target), (~predicted, target))
    return [(one & other).sum() for one, other in pairs]


@pytest.mark.parametrize(("mode", "classes"), MODES)
def test_logged_metrics_are_those_of_all_pixels(mode, classes):
    model, dataset = tiny(mode, classes), data(mode, classes)
    trainer, loader = make_trainer(), DataLoader(dataset, batch_size=2)
    (validated,), (tested,) = (run(model, loader, verbose=False) for run in (trainer.validate, trainer.test))
    images, masks = dataset.tensors
    with torch.no_grad():
        logits = model.eval()(images)
    expected = {"dice": [], "iou": [], "sensitivity": [], "specificity": []}
    for k in range(classes):
        if mode == "multiclass":
            predicted, target = logits.argmax(dim=1) == k, masks == k
        else:
            predicted, target = logits[:, k] > 0, masks[:, k].bool()
        tp, fp, tn, fn = counts(predicted, target)
        expected["dice"].append((2 * tp / (2 * tp + fp + fn)).item())
        expected["iou"].append((tp / (tp + fp + fn)).item())
        expected["sensitivity"].append((tp / (tp + fn)).item())
        expected["specificity"].append((tn / (tn + fp)).item())
    for results, split in ((validated, "val"), (tested, "test")):
        assert results.pop(f"{split}_loss") > 0
        means = {f"{split}_{name}": sum(values) / classes for name, values in expected.items()}
        assert results == pytest.approx(means, abs=1e-6)


def loss_by_numpy(logits, masks, mode):
    """Dice loss of the classes that occur, plus cross-entropy, in float64."""
    logits, masks = logits.detach().double().numpy(), masks.numpy()
    if mode == "multiclass":
        exponentials = np.exp(logits)
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        target = np.moveaxis(np.eye(logits.shape[1])[masks], -1, 1)
        entropy = -(target * np.log(probabilities)).sum(axis=1).mean()
    else:
        probabilities, target = 1 / (1 + np.exp(-logits)), masks.astype(np.float64)
        entropy = -(target * np.log(probabilities) + (1 - target) * np.log(1 - probabilities)).mean()
    overlap, size = ((probabilities * target).sum(axis=(0, 2, 3)), (probabilities + target).sum(axis=(0, 2, 3)))
    return np.where(target.any(axis=(0, 2, 3)), 1 - 2 * overlap / size, 0).mean() + entropy


@pytest.mark.parametrize("has_all", [True, False])
@pytest.mark.parametrize(("mode", "classes"), MODES)
def test_loss_is_dice_plus_cross_entropy(mode, classes, has_all):
    """A class that is not there has no Dice loss."""
    model, (images, masks) = tiny(mode, classes).eval(), data(mode, classes).tensors
    if not has_all and mode == "multiclass":
        masks[masks == classes - 1] = 0
    elif not has_all:
        masks[:, -1] = 0
    loss, _, _ = model.evaluate((images, masks))
    assert loss.item() == pytest.approx(loss_by_numpy(model(images), masks, mode), rel=1e-5)


def test_dice_loss_of_a_batch_without_tumour_is_zero():
    model, empty = tiny(), torch.zeros(2, 1, 8, 8)
    for logits in (torch.full_like(empty, -9), torch.full_like(empty, 9)):
        assert model.dice_loss(logits, empty) == 0


@pytest.mark.parametrize(("mode", "classes"), MODES)
def test_loss_of_half_precision_is_computed_in_float32(mode, classes):
    """Also its gradient, up to the rounding of the result."""
    _, masks = data(mode, classes, size=64).tensors
    model = tiny(mode, classes)
    model.forward = lambda images: images
    logits = (torch.randn(5, classes, 64, 64) * 2 - 3).bfloat16()
    gradients = []
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        output = logits.to(dtype, copy=True).requires_grad_()
        loss, _, _ = model.evaluate((output, masks))
        loss.backward()
        assert loss.item() == pytest.approx(loss_by_numpy(logits.float(), masks, mode), rel=1e-5)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        gradients.append(output.grad.double())
    half, single, double = gradients
    assert (half - double).norm() < 0.004 * double.norm()
    assert (single - double).norm() < 1e-5 * double.norm()


def test_a_binary_mask_may_have_no_channel():
    model, (images, masks) = tiny().eval(), data("binary", 1).tensors
    with_channel = model.evaluate((images, masks))
    without = model.evaluate((images, masks.squeeze(1)))
    for left, right in zip(with_channel, without, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("mode", "classes"), MODES)
def test_trains_and_predicts_probabilities(mode, classes):
    model, loader = tiny(mode, classes), DataLoader(data(mode, classes), batch_size=5)
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, loader)
    assert trainer.callback_metrics["train_loss"].isfinite()
    probabilities = torch.cat(trainer.predict(model, loader))
    assert probabilities.shape == (5, classes, 32, 32)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if mode == "multiclass":
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5, 32, 32))


def test_other_architectures_and_timm_encoders():
    for architecture, encoder in (("fpn", "mobilenet_v2"), ("Linknet", "tu-resnet10t")):
        model = SemanticSegmenter(architecture, encoder, in_channels=3)
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_a_checkpoint_brings_back_the_same_model(tmp_path):
    model = tiny("multilabel", 2)
    trainer = make_trainer(max_steps=1)
    trainer.fit(model, DataLoader(data("multilabel", 2), batch_size=5))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = SemanticSegmenter.load_from_checkpoint(tmp_path / "model.ckpt")
    images = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(again.eval()(images), model.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "Unett"}, r"`architecture` to be one of .*but got 'Unett'\. Did you mean 'Unet"),
        ({"encoder": "resnet81"}, r"`encoder` to be one of .*but got 'resnet81'\. Did you mean 'resnet18'"),
        ({"encoder": "tu-resnet10"}, r"`encoder` to be one of .*but got 'tu-resnet10'\. Did you mean .*'tu-resnet10t'"),
        ({"encoder_weights": "imagnet"}, r"`encoder_weights` to be one of .*Did you mean 'imagenet'"),
        ({"in_channels": 0}, r"`in_channels` to be an integer of at least 1"),
        ({"num_classes": 2}, r"`num_classes` to be 1 in mode 'binary', but got 2.*mode='multilabel'"),
        ({"mode": "multiclass"}, r"`num_classes` to be at least 2 in mode 'multiclass', but got 1.*mode='binary'"),
        ({"mode": "binery"}, r"`mode` to be one of .*Did you mean 'binary'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SemanticSegmenter(**arguments)


def test_a_mask_that_does_not_fit_its_image():
    images = torch.zeros(2, 1, 32, 32)
    with pytest.raises(ValueError, match=r"masks of shape \(2, 1, 32, 32\) in mode 'binary'.*got \(2, 2, 32, 32\)"):
        tiny().eval().evaluate((images, torch.zeros(2, 2, 32, 32)))
    with pytest.raises(ValueError, match=r"masks of shape \(2, 32, 32\) in mode 'multiclass'.*got \(2, 16, 16\)"):
        tiny("multiclass", 3).eval().evaluate((images, torch.zeros(2, 16, 16, dtype=torch.long)))
