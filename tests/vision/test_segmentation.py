import pytest
import torch
from torch import nn
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
    trainer = make_trainer()
    (results,) = trainer.validate(model, DataLoader(dataset, batch_size=2), verbose=False)
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
    assert results.pop("val_loss") > 0
    assert results == {f"val_{name}": pytest.approx(sum(each) / classes, abs=1e-6) for name, each in expected.items()}


@pytest.mark.parametrize(("mode", "classes"), MODES)
def test_loss_is_dice_plus_cross_entropy(mode, classes):
    model, (images, masks) = tiny(mode, classes).eval(), data(mode, classes).tensors
    logits = model(images)
    loss, _, _ = model.evaluate((images, masks))
    if mode == "multiclass":
        probabilities = logits.softmax(dim=1)
        target = nn.functional.one_hot(masks, classes).movedim(-1, 1).float()
        entropy = -(target * probabilities.log()).sum(dim=1).mean()
    else:
        probabilities, target = logits.sigmoid(), masks
        entropy = -(target * probabilities.log() + (1 - target) * (1 - probabilities).log()).mean()
    overlap = (probabilities * target).sum(dim=(0, 2, 3))
    dice = 1 - 2 * overlap / (probabilities + target).sum(dim=(0, 2, 3))
    torch.testing.assert_close(loss, dice.mean() + entropy, rtol=1e-4, atol=1e-5)


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
    model = tiny("multilabel", 2, lr=0.01)
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
        ({"in_channels": 0}, r"`in_channels` to be at least 1"),
        ({"num_classes": 2}, r"`num_classes` to be 1 in mode 'binary', but got 2.*mode='multilabel'"),
        ({"mode": "multiclass"}, r"`num_classes` to be at least 2 in mode 'multiclass', but got 1.*mode='binary'"),
        ({"mode": "binery"}, r"`mode` to be one of .*Did you mean 'binary'"),
        ({"optimizer": "Adma"}, r"`optimizer` to be one of"),
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
