"""Methods, values and metrics as a user writes them."""

import json
import math
from importlib import import_module

import pytest
import yaml

from lightning_znorm import GradientCentralization, GradientClipping, ZNorm
from lightning_znorm.compare.question.directions import guess_mode
from lightning_znorm.compare.question.methods import label_methods, parse_methods
from lightning_znorm.compare.question.run import Run, Setting, format_values
from lightning_znorm.compare.question.sweep import make_settings
from lightning_znorm.compare.question.syntax import parse_value
from lightning_znorm.compare.runs.recipes import make_flag
from tests.compare.helpers import TINY, question
from tests.compare.tiny import Halve


def test_methods_and_their_flags():
    none, clip, gc, znorm, other = parse_methods(
        f"none, clip(max_norm=0.5,norm_type=1), gc,"
        f"znorm(min_ndim=2,eps=1e-8,exclude=['*.bias', head.*]), {TINY}.Halve(by=0.25)"
    )
    assert none.make_flags() == []
    assert clip.init_args == {"max_norm": 0.5, "norm_type": 1}
    assert isinstance(clip.make_callbacks()[0], GradientClipping)
    assert isinstance(gc.make_callbacks()[0], GradientCentralization)
    (callback,) = znorm.make_callbacks()
    assert isinstance(callback, ZNorm)
    assert (callback.min_ndim, callback.eps, callback.exclude) == (2, 1e-8, ("*.bias", "head.*"))
    (flag,) = znorm.make_flags()
    assert json.loads(flag.partition("+=")[2])["class_path"] == "lightning_znorm.ZNorm"
    assert other.make_callbacks()[0].by == 0.25
    assert other.label == f"{TINY}.Halve(by=0.25)"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("none,znrom", r"unknown method 'znrom'\. Did you mean 'znorm'\? Known are none, clip, gc, scale, znorm"),
        ("", "Expected argument `methods` to name at least one method"),
        ("none,none", "names `none` 2 times"),
        ("none(x=1)", "`none` takes no arguments"),
        ("znorm(epz=1)", r"Method `znorm\(epz=1\)`: .*epz"),
        ("znorm(eps=-1)", "Expected argument `eps` to be a positive finite number"),
        ("znorm(2)", "'2' is not of the form `argument=value`"),
        ("znorm(min_ndim=2", r"lacks a closing '\)'"),
        ("znorm)", r"has a '\)' without its counterpart"),
        ("znorm!", "a method is written"),
        ("scale(center=True)", r"Method `scale\(center=True\)`: `scale` is ZNorm with center=False"),
        ("clip(norm=1)", r"Method `clip\(norm=1\)`: .*norm.*Did you mean"),
        ("clip(max_norm=0)", "Expected argument `max_norm` to be a positive number, but got 0"),
        ("clip(norm_type=max)", "Expected argument `norm_type` to be a positive number, but got 'max'"),
        ("no.such.Callback", r"`no\.such\.Callback` cannot be imported"),
        ("torch.optim.NoSuchThing", "cannot be imported"),
        ("torch.optim.SGD", "is not a callback of Lightning"),
    ],
)
def test_wrong_methods(methods, message):
    with pytest.raises(ValueError, match=message):
        parse_methods(methods)


def test_scale_is_znorm_without_centring():
    plain, other = parse_methods("scale,scale(min_ndim=2)")
    assert [callback.center for callback in (*plain.make_callbacks(), *other.make_callbacks())] == [False, False]
    assert other.make_callbacks()[0].min_ndim == 2
    assert plain.identity != other.identity != parse_methods("znorm(min_ndim=2)")[0].identity


def test_methods_by_name():
    methods = label_methods(
        {"plain": None, "half": Halve(0.5), "both": [Halve(0.5), ZNorm()], "z": "znorm(min_ndim=2)"}
    )
    assert [method.label for method in methods] == ["plain", "half", "both", "z"]
    assert [len(method.make_callbacks()) for method in methods] == [0, 1, 2, 1]
    quarter, half = label_methods({"a": Halve(0.25)})[0], methods[1]
    assert quarter.identity != half.identity
    with pytest.raises(ValueError, match="to map 'x' to a callback, a list of callbacks, text"):
        label_methods({"x": [3]})
    for label in (7, ""):
        with pytest.raises(ValueError, match="keys of argument `methods` to be names of the methods, but got"):
            label_methods({label: None})


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        (math.inf, ".inf"),
        (-math.inf, "-.inf"),
        (math.nan, ".nan"),
        (0.1, "0.1"),
        ([1, "a"], '[1, "a"]'),
        ("a b", "a b"),
    ],
)
def test_flags_are_read_as_they_were_meant(value, flag):
    assert make_flag("key", value) == f"--key={flag}"
    assert repr(parse_value(flag)) == repr(value)


def test_values_are_shown_alike_in_every_process():
    assert format_values({"layer": object()}) == format_values({"layer": object()})
    first, second = (lambda: 1), (lambda: 2)
    assert format_values({"f": first}) != format_values({"f": second})


def test_runs_have_keys_of_their_own():
    methods = parse_methods("none,znorm,znorm(min_ndim=2)")
    settings = make_settings({"lr": [0.1, 0.2], "depth": [1, 2]})
    runs = [Run(method, setting, seed) for seed in (0, 1) for setting in settings for method in methods]
    assert len({run.key for run in runs}) == len({str(run) for run in runs}) == len(runs) == 3 * 4 * 2
    assert str(runs[1]) == "znorm, lr=0.1, depth=1, seed 0"
    again = Run(parse_methods("znorm")[0], make_settings({"lr": [0.1], "depth": [1]})[0], 0)
    assert again.key == runs[1].key
    assert all("/" not in run.key and " " not in run.key for run in runs)


def test_a_run_with_a_varied_split_is_another_run():
    (method,) = parse_methods("none")
    plain, varied = Run(method, Setting(), 3), Run(method, Setting(), 3, "data.init_args.seed")
    assert plain.key != varied.key
    assert varied.values == {"data.init_args.seed": 3}
    assert str(varied) == str(plain)  # its setting is the same


def test_keys_with_the_same_end_are_shown_whole():
    assert format_values({"model.lr": 1.0, "head.lr": 2.0}) == "model.lr=1, head.lr=2"


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val_loss", "min"), ("valid/err", "min"), ("val_acc", "max"), ("val_dice", "max"), ("val/AUROC", "max")],
)
def test_the_mode_is_told_from_the_name(monitor, mode):
    assert question(monitor=monitor).mode == mode


def test_the_mode_comes_from_whole_words():
    small = """
        val_mape val_MAPE val_SMAPE val/wmape val_heatmap_l2 val_spec_l1 val_accel_l2 valLoss val_loss_epoch val_RMSE
        val_loss/dataloader_idx_0 val_wer val-cer val.fid val_perplexity val_hd95 val_hausdorff_distance val_ece
        val_expected_calibration_error val_brier_score val_top1_err val_Top5Error val_neg_log_likelihood val_fpr95
        val_bits_per_dim val_cross_entropy val_false_positive_rate val_fid_loss val_lpips val_minADE val_pinball1
    """
    large = """
        val_map val_mAP val_mAP50 val_map_5 val_mAP@0.5:0.95 val/AP50 val_mar_100 val_ndcg@10 val_nDCG val_mrr val_BLEU4
        val_ssim val_psnr val_cohen_kappa val_R2 val_r2_score val_top1 val_top_5 val_acc@1 val_acc5 valAcc val_F1Score
        val_f1_macro val_mIoU val_MeanIoU val_GIoU val_rouge1_fmeasure val_rougeLsum val_ROC_AUC val_si_sdr val_score
        val_meanAveragePrecision val_explained_variance val_negative_predictive_value val_exact_match val_hits10
    """
    assert {name: guess_mode(name) for name in small.split()} == dict.fromkeys(small.split(), "min")
    assert {name: guess_mode(name) for name in large.split()} == dict.fromkeys(large.split(), "max")


@pytest.mark.parametrize(
    "monitor",
    [
        *("val_feature_map", "val_heat_map", "val_class_map_size", "val_sensor_rms", "val_remap", "val_dice_loss"),
        *(
            "val_acc_gap",
            "val_neg_mse",
            "val_loss_std",
            "val_inverse_ssim",
            "val_glossy",
            "val_erratic",
            "validation_step",
        ),
    ],
)
def test_a_name_that_does_not_tell_the_mode_is_asked_for(monitor):
    with pytest.raises(ValueError, match="Argument `mode` is needed"):
        guess_mode(monitor)


def test_the_modes_of_the_metrics_of_torchmetrics():
    """Against `higher_is_better`, but for four that contradict their documentation and four without a telling word."""
    wrong = {"DaviesBouldinScore", "PerceptualPathLength", "SpectralDistortionIndex", "WordInfoPreserved"}
    unknown = {"BinaryFairness", "BinaryGroupStatRates", "SQuAD", "TotalVariation"}
    modes = {True: "max", False: "min"}
    kinds = "classification regression audio image text detection retrieval clustering nominal segmentation shape"
    for kind in kinds.split():
        module = import_module(f"torchmetrics.{kind}")
        for name in set(module.__all__) - wrong - unknown:
            mode = modes.get(getattr(getattr(module, name), "higher_is_better", None))
            if mode:
                assert (name, guess_mode(f"val_{name}")) == (name, mode)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": "val_quality"}, "Argument `mode` is needed"),
        ({"monitor": "val_acc_loss"}, "Argument `mode` is needed"),
        ({"monitor": "accuracy"}, "Argument `test_monitor` is needed"),
        ({"mode": "best"}, "Expected argument `mode` to be 'min' or 'max', but got 'best'"),
        ({"baseline": "adam"}, r"to be one of the methods \(none, clip, znorm\), but got 'adam'"),
    ],
)
def test_wrong_questions(changes, message):
    with pytest.raises(ValueError, match=message):
        question(**changes)


def test_the_baseline():
    assert question().baseline == "none"
    assert question(methods="clip,znorm").baseline == "clip"
    assert question(baseline="znorm").baseline == "znorm"


def test_what_yaml_reads_of_a_flag_is_what_was_meant():
    (method,) = parse_methods("znorm(exclude=['a: b', 'c,d'],stop_step=500)")
    written = yaml.safe_load(method.make_flags()[0].partition("+=")[2])
    assert written["init_args"] == {"exclude": ["a: b", "c,d"], "stop_step": 500}
