"""What `lightning-znorm compare` refuses, and when."""

from pathlib import Path

import pytest

from tests.compare.helpers import ALONE, TINY, compare, figures, read_results, refusal


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
        (["--compare.sweep=seed_everything=1,2"], "cannot be swept: give the seeds with `--compare.confirm`"),
        (["--compare.sweep=znorm.eps=1e-8,1e-4"], "cannot be swept: `--compare.methods` takes ZNorm's arguments"),
        (["--compare.sweep=nonsense"], "expected `key=values`"),
        (["--compare.confirm=0"], "Expected argument `confirm` to be an integer of at least 1, but got 0"),
        (["--compare.jobs=0"], "Expected argument `jobs` to be an integer of at least 1, but got 0"),
        (["--compare.monitor=val_quality"], "Argument `mode` is needed"),
        (["--compare.baseline=adam"], "Expected argument `baseline` to be one of the methods (none, znorm)"),
        (["--znorm"], "The configuration already contains ZNorm (group `znorm`)"),
        (["--trainer.callbacks+=lightning_znorm.ZNorm"], "already contain ZNorm (`trainer.callbacks`)"),
        (["--trainer.callbacks+=lightning_znorm.GradientCentralization"], "already contain GradientCentralization"),
        (["--trainer.gradient_clip_val=1"], "compare with the method `clip(max_norm=1)`"),
        (["--trainer.devices=[0,1]"], "ask for certain devices"),
        (["--ckpt_path=last.ckpt"], "resumes from a checkpoint (`ckpt_path`)"),
        (["--compare.out=/proc/nowhere"], "cannot be written"),
        (["--compare.confirm=5"], "Argument `confirm` asks for 5 pairs, with which no exact test of 1 comparisons"),
        (["--compare.confirm=[3,4,5,6,7]"], "Ask for 6 or more."),
        (["--compare.methods=none,znorm,clip"], "asks for 6 pairs, with which no exact test of 2 comparisons"),
        (["--compare.methods=none,znorm,clip,gc,scale", "--compare.confirm=7"], "Ask for 8 or more."),
        (["--compare.confirm=[1,2,3,4,5,5]"], "to be a number or a list of different seeds from 0 on"),
        (["--compare.confirm=[-1,2,3,4,5,6]"], "to be a number or a list of different seeds from 0 on"),
        (["--compare.confirm=[]"], "to be a number or a list of different seeds from 0 on, but got []"),
        (["--compare.margin=0"], "Expected argument `margin` to be a positive number, but got 0"),
        (["--compare.margin=-0.1"], "Give the smallest difference that matters."),
        (["--compare.width=0"], "Expected argument `width` to be a positive number, but got 0"),
        (["--compare.width=.nan"], "Expected argument `width` to be a positive number, but got nan"),
        (["--compare.width=0.1"], "Arguments `confirm` and `width` exclude each other"),
        (["--compare.trials=0"], "Expected argument `trials` to be an integer of at least 1, but got 0"),
        (["--compare.sweep=lr=1e-1..1e-3"], "has the range 1e-1..1e-3 of `lr`, which ends before it begins"),
        (["--compare.sweep=lr=0..1e-3"], "has '0' for the key `lr`; expected a positive number"),
        (["--compare.sweep=lr=auto(-1)"], "has '-1' for the key `lr`; expected a positive number"),
        (["--compare.sweep=lr=auto()"], "has '' for the key `lr`; expected a positive number"),
        (["--compare.sweep=lr="], "has no value for the key `lr`; expected a list such as 1e-3,1e-2, a range"),
        (["--compare.sweep=lr=0.1,0.10"], "has the value 0.1 of `lr` twice"),
        (["--compare.sweep=lr=auto lr=0.1"], "has the key `lr` twice"),
        (["--compare.sweep=lr=auto model.init_args.width=auto"], "searches lr, model.init_args.width. Search one"),
        (
            ["--compare.sweep=lr={none: 0.1, adam: 0.2}"],
            "values of `lr` for none, adam, but the methods are none, znorm",
        ),
        (["--compare.sweep=model.init_args.optimizer=auto"], "`model.init_args.optimizer` has no positive number in"),
        (["--compare.sweep=model.init_args.lrr=auto(0.1)"], "Did you mean 'model.init_args.lr'?"),
        (
            [f"--model={TINY}.Deaf", "--compare.sweep=lr=auto"],
            "no `lr` or `learning_rate` with a positive number is in the configuration. Name the key",
        ),
        (["--compare.vary=data.init_args.sed"], "`--compare.vary data.init_args.sed`"),
        (["--compare.vary=data.init_args.batch"], "Did you mean 'data.init_args.batch_size'?"),
        (["--compare.vary=seed_everything"], "`--compare.vary seed_everything`: this key cannot be varied"),
        (
            ["--compare.vary=model.init_args.width", "--compare.sweep=model.init_args.width=4,8"],
            "The key `model.init_args.width` is swept",
        ),
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


@pytest.mark.parametrize("flag", ["--compare.mode=best", "--compare.seeds=3", "--compare.dry_run=perhaps"])
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
        (["--model.init_args.fail=raise", "--compare.confirm=[1]"], "RuntimeError: out of luck"),
    ],
)
def test_refusals_after_a_trial(capsys, flags, message):
    assert message in refusal(capsys, "--compare.methods=none", *flags)
    assert not read_results("out")
    assert not Path("out/report.html").exists()


@pytest.mark.slow
def test_of_another_configuration(capsys):
    assert compare(*ALONE) == 0
    before = figures(read_results("out"))
    message = refusal(capsys, *ALONE, "--model.init_args.width=8")
    assert "another configuration (model.init_args.width is 8, was 4)" in message
    assert figures(read_results("out")) == before
