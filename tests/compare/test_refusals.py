"""What `lightning-znorm compare` refuses, and when."""

from pathlib import Path

import pytest

from tests.compare.helpers import TINY, compare, figures, read_results, refusal


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compare.methods=none,znrom"], "unknown method 'znrom'. Did you mean 'znorm'?"),
        (["--compare.methods=none,znorm(epz=1)"], "Method `znorm(epz=1)`"),
        (["--compare.sweep=model.init_args.lrr=1,2"], "`--compare.sweep model.init_args.lrr`"),
        (["--compare.sweep=model.init_args.lrr=1,2"], "Did you mean 'model.init_args.lr'?"),
        (["--compare.sweep=trainer.init_args.lr=1,2"], "Did you mean 'model.init_args.lr'?"),
        (["--compare.sweep=model.init_args.lr=fast,slow"], "`--compare.sweep model.init_args.lr`"),
        (["--compare.sweep=trainer.max_epoch=1,2"], "Did you mean 'trainer.max_epochs'?"),
        (["--compare.sweep=seed_everything=1,2"], "cannot be swept: give the seeds with `--compare.seeds`"),
        (["--compare.sweep=znorm.eps=1e-8,1e-4"], "cannot be swept: `--compare.methods` takes ZNorm's arguments"),
        (["--compare.sweep=nonsense"], "expected `key=value,value,…`"),
        (["--compare.seeds=0"], "Expected argument `seeds` to be an integer of at least 1, but got 0"),
        (["--compare.jobs=0"], "Expected argument `jobs` to be an integer of at least 1, but got 0"),
        (["--compare.monitor=val_quality"], "Argument `mode` is needed"),
        (["--compare.baseline=adam"], "Expected argument `baseline` to be one of the methods (none, znorm)"),
        (["--znorm"], "The configuration already contains ZNorm (group `znorm`)"),
        (["--trainer.callbacks+=lightning_znorm.ZNorm"], "already contain ZNorm (`trainer.callbacks`)"),
        (["--trainer.callbacks+=lightning_znorm.GradientCentralization"], "already contain GradientCentralization"),
        (["--trainer.gradient_clip_val=1"], "compare with the method `clip(max_norm=1)`"),
        (["--trainer.devices=2"], "ask for several devices"),
        (["--ckpt_path=last.ckpt"], "resumes from a checkpoint (`ckpt_path`)"),
        (["--compare.out=/proc/nowhere"], "cannot be written"),
    ],
)
def test_refusals_before_anything_runs(capsys, flags, message):
    assert message in refusal(capsys, *flags)
    assert not Path("out").exists()


def test_a_yaml_that_contains_znorm(capsys):
    Path("znorm.yaml").write_text("znorm: {min_ndim: 2}")
    assert "already contains ZNorm" in refusal(capsys, "--config=znorm.yaml")


def test_a_foreign_folder(capsys):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    assert "is not the folder of a comparison (it contains thesis.tex)" in refusal(capsys)
    assert [path.name for path in Path("out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("flag", ["--compare.mode=best", "--compare.seed=3", "--compare.dry_run=perhaps"])
def test_the_parser_refuses(capsys, flag):
    assert "compare" in refusal(capsys, flag)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compare.monitor=val_accuracy"], "does not log that in its validation. Did you mean 'val_acc'? It logs"),
        (["--compare.test_monitor=test_accuracy"], "Did you mean 'test_acc'? It logs test_loss, test_acc."),
        ([f"--model={TINY}.WithoutTest"], "the module has no `test_step`"),
        ([f"--data={TINY}.WithoutTestData"], "there is no `test_dataloader`"),
        (
            [f"--model={TINY}.WithItsOwnZNorm", "--compare.methods=znorm"],
            "`WithItsOwnZNorm.configure_callbacks` returns a `ZNorm`",
        ),
        (["--compare.methods=none,znorm(exclude=encoder.*)"], "the pattern 'encoder.*' matches no parameter"),
        (["--trainer.precision=transformer-engine"], "The trial of method `none` failed"),
        (
            ["--model.init_args.optimizer=LBFGS", "--compare.methods=znorm"],
            "`ZNorm` does not support the optimizer `LBFGS`",
        ),
        (["--model.init_args.fail=raise", "--compare.seeds=[1]"], "RuntimeError: out of luck"),
    ],
)
def test_refusals_after_a_trial(capsys, flags, message):
    assert message in refusal(capsys, "--compare.methods=none", *flags)
    assert not read_results("out")
    assert not Path("out/report.html").exists()


@pytest.mark.slow
def test_of_another_configuration(capsys):
    assert compare("--compare.seeds=1") == 0
    before = figures(read_results("out"))
    message = refusal(capsys, "--compare.seeds=1", "--model.init_args.width=8")
    assert "another configuration (model.init_args.width is 8, was 4)" in message
    assert figures(read_results("out")) == before
