"""The Dice of each case, such as a patient, against NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm.vision import ImageClassifier
from tests import warm
from tests.helpers import make_trainer
from tests.vision.test_metrics import (
    MODES,
    RATIOS,
    compute,
    counts_of_classes,
    mean_of_classes,
    random_masks,
    segmenter,
)

ROOT = Path(__file__).parents[2]


def with_cases(mode, classes, samples=8):
    """Images, masks of which one class is absent from a case, and the cases, which batches cut."""
    images = torch.randn(samples, 1, 32, 32)
    _, masks = random_masks(mode, classes, samples, size=32)
    cases = torch.tensor([7, 7, 7, 2, 2, 2, 2, 40])[:samples]
    if mode == "multiclass":
        masks[3:7][masks[3:7] == 1] = 0
    else:
        masks[3:7, -1] = 0
    return TensorDataset(images, masks if mode == "multiclass" else masks.float(), cases)


class TestDicePerCase:
    @pytest.mark.parametrize(("mode", "classes"), MODES)
    def test_is_the_mean_over_cases_and_classes(self, mode, classes):
        model, dataset = segmenter(mode, classes), with_cases(mode, classes)
        images, masks, cases = dataset.tensors
        with torch.no_grad():
            logits = model.eval()(images)
        predictions = logits.argmax(dim=1) if mode == "multiclass" else (logits > 0).long()
        counts = [
            counts_of_classes(predictions[cases == case], masks[cases == case], mode, classes) for case in (2, 7, 40)
        ]
        expected = mean_of_classes("dice", np.concatenate(counts, axis=1))
        pairs = sum(np.count_nonzero(tp + fn) for tp, _, _, fn in counts)
        assert pairs == 3 * classes - 1
        trainer, loader = make_trainer(), DataLoader(dataset, batch_size=3)
        (validated,), (tested,) = (run(model, loader, verbose=False) for run in (trainer.validate, trainer.test))
        assert validated["val_dice_per_case"] == pytest.approx(expected, abs=1e-6)
        assert tested["test_dice_per_case"] == pytest.approx(expected, abs=1e-6)
        assert validated["val_dice"] != pytest.approx(expected, abs=1e-4)

    def test_is_not_logged_without_cases(self):
        model, (images, masks, _) = segmenter("binary", 1), with_cases("binary", 1).tensors
        trainer, loader = make_trainer(), DataLoader(TensorDataset(images, masks), batch_size=3)
        (results,) = trainer.validate(model, loader, verbose=False)
        assert results.keys() == {"val_loss", *(f"val_{name}" for name in RATIOS)}

    def test_a_case_without_tumour_does_not_count(self):
        masks = torch.zeros(4, 1, 8, 8, dtype=torch.long)
        masks[:2, :, :2] = 1
        wrong = masks.clone()
        wrong[2] = 1
        cases = torch.tensor([0, 0, 1, 1])
        assert compute(segmenter("binary", 1).val_case_metrics, (wrong, masks, cases)) == {"dice_per_case": 1}
        for predicted, expected in ((wrong, 0), (masks, 1)):
            batch = predicted[2:], masks[2:], cases[2:]
            assert compute(segmenter("binary", 1).val_case_metrics, batch) == {"dice_per_case": expected}

    def test_trains_and_predicts_on_batches_with_cases(self):
        model, loader = segmenter("binary", 1), DataLoader(with_cases("binary", 1), batch_size=4)
        trainer = make_trainer(max_epochs=1)
        trainer.fit(model, loader, loader)
        assert trainer.callback_metrics["train_loss"].isfinite()
        assert 0 <= trainer.callback_metrics["val_dice_per_case"] <= 1
        assert torch.cat(trainer.predict(model, loader)).shape == (8, 1, 32, 32)

    def test_a_classifier_leaves_the_cases_alone(self):
        data = TensorDataset(torch.randn(6, 1, 32, 32), torch.arange(6) % 2, torch.arange(6))
        model, loader, trainer = ImageClassifier("squeezenet1_1", 2, 1), DataLoader(data, 4), make_trainer(max_steps=1)
        trainer.fit(model, loader, loader)
        (results,) = trainer.test(model, loader, verbose=False)
        assert results.keys() == {f"test_{name}" for name in ("loss", "acc", "f1", "precision", "recall", "auroc")}
        assert torch.cat(trainer.predict(model, loader)).shape == (6, 2)

    @pytest.mark.parametrize("cases", [("a", "b"), torch.zeros(3, dtype=torch.long), torch.zeros(2)])
    def test_a_third_element_that_is_something_else(self, cases):
        masks = torch.zeros(2, 1, 8, 8, dtype=torch.long)
        with pytest.raises(ValueError, match=r"third element of a batch .*int64 tensor of shape \(2,\), but got"):
            segmenter("binary", 1).val_case_metrics.update(masks, masks, cases)


DDP = """
import json
import sys
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

sys.path.insert(0, {root!r})
from tests.helpers import make_trainer
from tests.vision.test_dice_per_case import segmenter, with_cases

BATCHES = [[0, 1, 2], [3, 4], [5], [6]]

if __name__ == "__main__":
    results = []
    for mode, classes in (("binary", 1), ("multiclass", 4)):
        torch.manual_seed(0)
        model, dataset = segmenter(mode, classes), with_cases(mode, classes)
        torch.manual_seed(0)
        if sys.argv[1] == "2":
            strategy = DDPStrategy(process_group_backend="gloo")
            trainer = make_trainer(strategy=strategy, devices=2, use_distributed_sampler=False)
            batches = (BATCHES[:1], BATCHES[1:])[trainer.global_rank]
        else:
            trainer, batches = make_trainer(), BATCHES
        for run in (trainer.validate, trainer.test):
            results += run(model, DataLoader(dataset, batch_sampler=batches), verbose=False)
    Path(f"results-{{sys.argv[1]}}-{{trainer.global_rank}}.json").write_text(json.dumps(results))
"""


@pytest.mark.long
def test_two_ranks_equal_one_process():
    """One rank has one batch of one case, the other three batches with the rest of it and two more."""
    Path("evaluate.py").write_text(DDP.format(root=str(ROOT)))
    for processes in ("1", "2"):
        done = warm.run("evaluate.py", processes)
        assert done.returncode == 0, done.stderr
    expected, *ranks = (json.loads(Path(f"results-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert [sorted(results) for results in expected] == [
        sorted(f"{split}_{name}" for name in ("loss", "dice_per_case", *RATIOS)) for split in ("val", "test") * 2
    ]
    for results in ranks:
        assert results == [pytest.approx(each, abs=1e-6) for each in expected]
