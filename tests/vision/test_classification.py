import math
from functools import partial

import pytest
import torch
from sklearn import metrics as sk
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from lightning_znorm.vision import CosineAnnealing, ImageClassifier
from lightning_znorm.vision.backbones import make_backbone
from tests.helpers import make_trainer


def tiny(classes=3, **kwargs):
    """A classifier of 8 x 8 images with a backbone that is fast to build."""
    return ImageClassifier("squeezenet1_1", num_classes=classes, in_channels=1, **kwargs)


def batches(classes=3, samples=24, size=32):
    data = TensorDataset(torch.randn(samples, 1, size, size), torch.arange(samples) % classes)
    return DataLoader(data, batch_size=10)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("resnet18", 32), ("mobilenet_v3_small", 32), ("densenet121", 32), ("squeezenet1_1", 32), ("googlenet", 64)],
)
@pytest.mark.parametrize("in_channels", [1, pytest.param(3, marks=pytest.mark.long), 4])
def test_backbones_take_any_number_of_channels(backbone, size, in_channels):
    model = ImageClassifier(backbone, num_classes=5, in_channels=in_channels)
    images, labels = torch.randn(2, in_channels, size, size), torch.tensor([0, 4])
    assert model.train()(images).shape == (2, 5)
    assert model.eval()(images).shape == (2, 5)
    loss, probabilities, _ = model.evaluate((images, labels))
    assert loss.isfinite()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))


def test_small_images_keeps_the_resolution():
    plain, small = make_backbone("resnet18", 10, 1), make_backbone("resnet18", 10, 1, small_images=True)
    images = torch.randn(1, 1, 32, 32)
    assert nn.Sequential(plain.conv1, plain.bn1, plain.relu, plain.maxpool)(images).shape[-1] == 8
    assert nn.Sequential(small.conv1, small.bn1, small.relu, small.maxpool)(images).shape[-1] == 32


@pytest.mark.parametrize("has_all", [True, False])
@pytest.mark.parametrize("classes", [2, 10])
def test_logged_metrics_agree_with_scikit_learn(classes, has_all):
    """Averaged over the classes that occur; of logits given as images, the last batch smaller."""
    labels = torch.arange(45) % classes
    if not has_all:
        labels[labels == classes - 1] = 0
    logits = torch.randn(45, classes) + nn.functional.one_hot(labels, classes)
    model = tiny(classes, label_smoothing=0.1)
    model.forward = lambda images: images
    trainer, loader = make_trainer(), DataLoader(TensorDataset(logits, labels), batch_size=10)
    (validated,), (tested,) = (run(model, loader, verbose=False) for run in (trainer.validate, trainer.test))
    predicted = logits.argmax(dim=1)
    expected = {
        "loss": nn.functional.cross_entropy(logits.double(), labels, label_smoothing=0.1).item(),
        "acc": sk.accuracy_score(labels, predicted),
    }
    counted = [1] if classes == 2 else labels.unique().tolist()
    for name, score in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        expected[name] = score(labels, predicted, labels=counted, average="macro", zero_division=0)
    if classes == 2:
        expected["auroc"] = sk.roc_auc_score(labels, logits.softmax(dim=1)[:, 1]) if has_all else 0
    assert validated == pytest.approx({f"val_{name}": value for name, value in expected.items()}, abs=1e-6)
    assert tested == pytest.approx({f"test_{name}": value for name, value in expected.items()}, abs=1e-6)


def test_trains_and_predicts():
    torch.manual_seed(0)
    images = torch.randn(30, 1, 32, 32) + torch.arange(3).repeat(10).view(-1, 1, 1, 1) * 2
    loader = DataLoader(TensorDataset(images, torch.arange(3).repeat(10)), batch_size=10)
    model = ImageClassifier("resnet18", num_classes=3, in_channels=1)
    trainer = make_trainer(max_epochs=4)
    trainer.fit(model, loader)
    assert trainer.callback_metrics["train_loss"] < 0.5 * math.log(3)
    probabilities = torch.cat(trainer.predict(model, loader))
    assert probabilities.shape == (30, 3)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(30))


def test_a_checkpoint_brings_back_the_same_model(tmp_path):
    model = tiny(optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9), lr_scheduler=CosineAnnealing)
    trainer = make_trainer(max_steps=1)
    trainer.fit(model, batches())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert again.hparams == model.hparams
    assert again.hparams["backbone"] == "squeezenet1_1"
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(again.eval()(images), model.eval()(images), rtol=0, atol=0)


@pytest.fixture
def offered_weights(monkeypatch):
    """Pretrained weights without a download: those of a model made here."""
    torch.manual_seed(1)
    made = {}

    def get_state_dict(self, *args, **kwargs):
        name = str(self).split("_Weights")[0].lower()
        made.setdefault(name, models.get_model(name, weights=None))
        return made[name].state_dict()

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", get_state_dict, raising=True)
    return made


def test_pretrained_googlenet_takes_other_channels(offered_weights):
    model = ImageClassifier("googlenet", num_classes=4, in_channels=1, weights="DEFAULT").train()
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1"])
def test_pretrained_weights_get_a_new_head_and_keep_the_rest(offered_weights, backbone, in_channels):
    model = make_backbone(backbone, num_classes=7, in_channels=in_channels, weights="DEFAULT").eval()
    original = offered_weights[backbone].eval()
    grey = torch.randn(2, 1, 64, 64)
    assert model(grey.expand(-1, in_channels, -1, -1)).shape == (2, 7)
    # a grey image gives what it would as three equal channels, up to the head
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first_original = next(module for module in original.modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(
        first(grey.expand(-1, in_channels, -1, -1)), first_original(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
    )
    kept = {
        name
        for name, value in model.state_dict().items()
        if name in original.state_dict()
        and value.shape == original.state_dict()[name].shape
        and torch.equal(value, original.state_dict()[name])
    }
    assert len(kept) >= len(original.state_dict()) - 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnt18"}, r"`backbone` to be one of .*but got 'resnt18'\. Did you mean 'resnet18'"),
        ({"weights": "IMAGENET"}, r"`weights` to be one of .*'DEFAULT'.*but got 'IMAGENET'"),
        ({"num_classes": 1}, r"`num_classes` to be an integer of at least 2, but got 1"),
        ({"in_channels": 0}, r"`in_channels` to be an integer of at least 1, but got 0"),
        ({"label_smoothing": 2.0}, r"`label_smoothing` to be in \[0, 1\], but got 2\.0"),
        (
            {"backbone": "squeezenet1_1", "small_images": True},
            r"`small_images` is for .* ResNets, but `backbone` is 'squeezenet1_1'",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**arguments)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", pytest.param("64-true", marks=pytest.mark.long)])
def test_the_mean_loss_is_exact_in_every_precision(precision):
    """A Trainer converts the states of a module's metrics to half precision, too: no sum may be kept there."""
    torch.manual_seed(0)
    model = tiny()
    model.forward = lambda images: images
    data = DataLoader(TensorDataset(torch.randn(301, 3), torch.arange(301) % 3), batch_size=1)
    losses = []
    evaluate = model.evaluate
    model.evaluate = lambda batch: losses.append((result := evaluate(batch))[0].double().item()) or result
    (metrics,) = make_trainer(precision=precision).validate(model, data, verbose=False)
    assert metrics["val_loss"] == pytest.approx(sum(losses) / 301, rel=1e-6)


def test_a_loss_of_nan_is_logged_as_nan():
    model = ImageClassifier("cifar_resnet20", num_classes=3)
    torch.nn.init.constant_(model.backbone.head.bias, torch.nan)
    data = DataLoader(TensorDataset(torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1])), batch_size=2)
    (metrics,) = make_trainer().validate(model, data, verbose=False)
    assert math.isnan(metrics["val_loss"])
