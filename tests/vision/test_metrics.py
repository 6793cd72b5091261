"""Which classes count in the metrics of a split, against NumPy."""

import numpy as np
import pytest
import torch

from lightning_znorm.vision import ImageClassifier, SemanticSegmenter, _metrics

MODES = [("binary", 1), ("multilabel", 3), ("multiclass", 4)]
RATIOS = {
    "dice": lambda tp, fp, tn, fn: (2 * tp, 2 * tp + fp + fn),
    "iou": lambda tp, fp, tn, fn: (tp, tp + fp + fn),
    "sensitivity": lambda tp, fp, tn, fn: (tp, tp + fn),
    "specificity": lambda tp, fp, tn, fn: (tn, tn + fp),
}


def segmenter(mode, classes):
    return SemanticSegmenter("Unet", "mobilenet_v2", num_classes=classes, mode=mode)


def compute(metrics, *batches):
    """The values of a collection over some batches, by the names without `val_`."""
    for batch in batches:
        metrics.update(*batch)
    return {name.removeprefix("val_"): value.item() for name, value in metrics.compute().items()}


def counts_of_classes(predictions, targets, mode, classes):
    """True and false positives, true and false negatives by NumPy, of shape (4, classes)."""
    columns = []
    for k in range(classes):
        if mode == "multiclass":
            predicted, true = predictions.numpy() == k, targets.numpy() == k
        else:
            predicted, true = predictions[:, k].numpy() == 1, targets[:, k].numpy() == 1
        pairs = ((predicted, true), (predicted, ~true), (~predicted, ~true), (~predicted, true))
        columns.append([np.count_nonzero(one & other) for one, other in pairs])
    return np.array(columns).T


def mean_of_classes(name, counts):
    tp, fp, tn, fn = counts
    counted = (tn + fp if name == "specificity" else tp + fn) > 0
    part, whole = RATIOS[name](tp, fp, tn, fn)
    return (part[counted] / whole[counted]).mean()


def random_masks(mode, classes, samples, absent=None, size=12):
    """Predictions and targets as integers; the targets lack one class, the first one is empty."""
    if mode == "multiclass":
        predictions, targets = torch.randint(classes, (2, samples, size, size))
        targets[targets == absent] = 0
    else:
        predictions, targets = (torch.rand(2, samples, classes, size, size) > 0.7).long()
        if absent is not None:
            targets[:, absent] = 0
    targets[0] = 0
    return predictions, targets


class TestWhichClassesCount:
    @pytest.mark.parametrize(("mode", "classes"), MODES)
    def test_perfect_is_one(self, mode, classes):
        _, targets = random_masks(mode, classes, samples=3, absent=None if mode == "binary" else classes - 1)
        values = compute(segmenter(mode, classes).val_metrics, (targets, targets))
        assert values == dict.fromkeys(RATIOS, 1.0)

    @pytest.mark.parametrize(("mode", "classes"), MODES[1:])
    def test_a_wrong_pixel_of_an_absent_class_changes_little(self, mode, classes):
        _, targets = random_masks(mode, classes, samples=3, absent=classes - 1)
        predictions = targets.clone()
        if mode == "multiclass":
            predictions[1, 0, 0] = classes - 1
        else:
            predictions[1, classes - 1, 0, 0] = 1
        values = compute(segmenter(mode, classes).val_metrics, (predictions, targets))
        assert all(0.99 < value <= 1 for value in values.values())
        assert values["specificity"] < 1

    @pytest.mark.parametrize(("mode", "classes"), MODES[:2])
    def test_a_split_without_tumour(self, mode, classes):
        empty = torch.zeros(2, classes, 8, 8, dtype=torch.long)
        values = compute(segmenter(mode, classes).val_metrics, (empty, empty))
        assert values == dict.fromkeys(RATIOS, 1.0)
        wrong = empty.clone()
        wrong[0, 0, 0, 0] = 1
        values = compute(segmenter(mode, classes).val_metrics, (wrong, empty))
        specificity = 1 - 1 / (128 * classes)
        assert values == {"dice": 0, "iou": 0, "sensitivity": 0, "specificity": pytest.approx(specificity)}

    def test_a_split_of_nothing_but_tumour(self):
        full = torch.ones(2, 1, 8, 8, dtype=torch.long)
        assert compute(segmenter("binary", 1).val_metrics, (full, full))["specificity"] == 1
        wrong = full.clone()
        wrong[0, 0, 0, 0] = 0
        assert compute(segmenter("binary", 1).val_metrics, (wrong, full))["specificity"] == 0

    @pytest.mark.parametrize(("mode", "classes"), MODES)
    @pytest.mark.parametrize("has_all", [True, False])
    def test_against_numpy(self, mode, classes, has_all):
        absent = None if has_all or mode == "binary" else 1
        predictions, targets = random_masks(mode, classes, samples=7, absent=absent)
        batches = zip(predictions.split(3), targets.split(3), strict=True)
        counts = counts_of_classes(predictions, targets, mode, classes)
        values = compute(segmenter(mode, classes).val_metrics, *batches)
        assert values == {name: pytest.approx(mean_of_classes(name, counts), abs=1e-6) for name in RATIOS}

    def test_two_classes(self):
        """Of two classes of images, class 1 alone has F1, precision and recall."""
        names = ("f1", "precision", "recall")
        for probabilities, expected in (([0.1, 0.2], 1), ([0.1, 0.9], 0)):
            batch = torch.tensor(probabilities), torch.zeros(2, dtype=torch.long)
            values = compute(ImageClassifier("squeezenet1_1", 2, 1).val_metrics, batch)
            assert [values[name] for name in names] == [expected] * 3
            assert values["acc"] == (1 + expected) / 2
        never = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
        values = compute(ImageClassifier("squeezenet1_1", 2, 1).val_metrics, never)
        assert [values[name] for name in names] == [0, 0, 0]

    @pytest.mark.parametrize("label", [0, 1])
    def test_auroc_of_one_class_is_zero_with_a_warning(self, label):
        batch = torch.tensor([0.2, 0.7]), torch.full((2,), label)
        with pytest.warns(UserWarning, match="No (positive|negative) samples in targets"):
            assert compute(ImageClassifier("squeezenet1_1", 2, 1).val_metrics, batch)["auroc"] == 0

    def test_a_class_that_is_never_predicted_has_precision_zero(self):
        predictions = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1]])
        values = compute(ImageClassifier("squeezenet1_1", 3, 1).val_metrics, (predictions, torch.tensor([0, 1])))
        assert values == pytest.approx({"acc": 1 / 2, "f1": 1 / 3, "precision": 1 / 4, "recall": 1 / 2})


class TestCounts:
    def test_are_exact_beyond_what_floats_hold(self):
        metric = _metrics.AverageRatio("sensitivity", "binary", 1)
        metric.tp = torch.tensor([2**53])
        metric.bfloat16().update(torch.tensor([1, 1]), torch.tensor([1, 1]))
        metric.update(torch.tensor([1]), torch.tensor([1]))
        assert metric.tp.item() == 2**53 + 3
        assert metric.compute() == 1

    @pytest.mark.parametrize(("mode", "classes"), MODES)
    def test_one_count_for_all_metrics(self, mode, classes, monkeypatch):
        batch, calls, count = random_masks(mode, classes, samples=2), [], _metrics._count
        monkeypatch.setattr(_metrics, "_count", lambda *arguments: calls.append(1) or count(*arguments))
        metrics = segmenter(mode, classes).val_metrics
        metrics.update(*batch)  # with which torchmetrics finds out which metrics have the same counts
        calls.clear()
        for _ in range(3):
            metrics.update(*batch)
        assert len(calls) == 3
        metrics.reset()
        metrics.update(*batch)
        assert len(calls) == 4

    @pytest.mark.parametrize("classes", [2, 5])
    def test_one_count_for_all_metrics_of_a_classifier(self, classes, monkeypatch):
        metrics, batch = ImageClassifier("squeezenet1_1", classes, 1).val_metrics, torch.rand(6, classes)
        metrics.update(batch[:, 1] if classes == 2 else batch, torch.arange(6) % classes)
        expected = (
            [["acc", "f1", "precision", "recall"], ["auroc"]]
            if classes == 2
            else [["acc"], ["f1", "precision", "recall"]]
        )
        assert sorted(metrics.compute_groups.values()) == expected

    @pytest.mark.parametrize(("mode", "classes"), MODES)
    def test_with_deterministic_algorithms(self, mode, classes):
        predictions, targets = random_masks(mode, classes, samples=4)
        cases, values = torch.tensor([0, 1, 0, 2]), []
        for is_deterministic in (False, True):
            torch.use_deterministic_algorithms(is_deterministic)
            try:
                model = segmenter(mode, classes)
                values.append(compute(model.val_metrics, (predictions, targets)))
                values[-1] |= compute(model.val_case_metrics, (predictions, targets, cases))
            finally:
                torch.use_deterministic_algorithms(False)
        assert len(values[0]) == 5
        assert values[0] == values[1]

    def test_are_not_part_of_a_checkpoint(self):
        model = segmenter("binary", 1)
        batch = random_masks("binary", 1, samples=2)
        model.val_metrics.update(*batch)
        model.val_case_metrics.update(*batch, torch.tensor([0, 1]))
        assert {name.partition(".")[0] for name in model.state_dict()} == {"model"}
