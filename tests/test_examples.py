"""The examples as a user starts them, on a few batches."""

import re
import struct
from pathlib import Path
from pydoc_data.topics import topics

import pandas as pd
import pytest
import torch
import yaml

from examples.characters import CharacterTransformer, PythonTopics
from tests import warm

ROOT = Path(__file__).parents[1]


def run(script, *args):
    return warm.run(ROOT / "examples" / script, *args)


def size_of_png(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


QUICK = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
QUICK += [f"--trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]


@pytest.mark.long
def test_demo():
    """What `make demo` runs, with the fewest pairs: a picture, two comparisons, their answers, and what to do next."""
    assert "$(BIN)/python -m examples.demo $(DEMO_ARGS)" in (ROOT / "Makefile").read_text()
    done = warm.run("-m", "examples.demo", *QUICK, "--compare.confirm=7", env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    answers = done.stdout.partition("=" * 80)[2]
    for name, question, methods, metric in (
        ("digits", "Do none and clip beat znorm?", ["none", "clip", "znorm"], "test_acc"),
        ("brain_mri", "Does znorm beat none?", ["none", "znorm"], "test_dice"),
    ):
        out = Path("results/demo", name)
        assert f"# {question}\n" in done.stdout
        assert f"\n{question}\n- `" in answers
        assert f"See {out / 'report.html'}" in answers
        frame = pd.read_csv(out / "runs.csv")
        assert set(frame["status"]) <= {"finished", "diverged"}
        confirmed = frame[frame["stage"] == "confirmation"]
        assert confirmed.groupby("method").size().to_dict() == dict.fromkeys(methods, 7)
        assert (frame.groupby("seed")[["weights_hash", "batches_hash"]].nunique() == 1).all(axis=None)
        assert frame["batches_hash"].nunique() == frame["seed"].nunique()
        summary = pd.read_csv(out / "summary.csv").set_index("method")
        assert summary["test"].to_dict() == pytest.approx(confirmed.groupby("method")[metric].mean().to_dict())
    assert answers.rstrip().endswith("--trainer.max_epochs 10 --compare.monitor val_acc")
    width, height = size_of_png(Path("results/demo/gradients.png"))
    assert width > 500 < height
    assert not Path("lightning_logs").exists()


OTHERS = {
    "zclip.ZClipLightningCallback(warmup_steps=1)": "ZClip",
    "examples.other_methods.AGC(clip_factor=0.01)": "AGC",
    "examples.other_methods.AutoClip(quantile=0.1)": "AutoClip",
}


@pytest.mark.long
def test_methods_by_others():
    """Each changes the training: its loss is another one, from the same weights and batches."""
    Path("examples").symlink_to(ROOT / "examples")
    methods = ["none", *OTHERS]
    for number, method in enumerate(methods):
        done = warm.run(
            *("-m", "lightning_znorm", "compare", "--config", "examples/digits.yaml", "--trainer.accelerator=cpu"),
            *("--trainer.max_epochs=1", "--trainer.limit_train_batches=15", "--trainer.limit_val_batches=2"),
            *("--trainer.limit_test_batches=1", "--compare.monitor=val_loss", f"--compare.out=others-{number}"),
            *("--compare.sweep=null", "--compare.confirm=1", f"--compare.methods={method}"),
        )
        assert done.returncode == 0, done.stderr
    frame = pd.concat([pd.read_csv(f"others-{number}/runs.csv") for number in range(len(methods))])
    assert frame["method"].tolist() == methods
    assert set(frame["status"]) == {"finished"}
    assert frame[["weights_hash", "batches_hash"]].nunique().tolist() == [1, 1]
    assert frame["validation"].nunique() == len(methods)


@pytest.mark.long
@pytest.mark.parametrize(("name", "methods"), [("demo_brain_mri", 2), ("characters", 6)])
def test_a_comparison_can_be_run(name, methods):
    config = ROOT / "examples" / f"{name}.yaml"
    done = warm.run("-m", "lightning_znorm", "compare", "--config", config, *QUICK, "--compare.dry_run=true")
    assert done.returncode == 0, done.stderr
    stages = rf"{methods} x up to \d+ to select a setting, {methods} x (at least )?\d+ to confirm it"
    assert re.search(rf"\d+ runs \({stages}\); 2 side by side", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--no_znorm"], [], ["--amp"], ["--closure"]], ids=str)
def test_plain_pytorch(flags):
    done = run("plain_pytorch.py", "--epochs=8", *flags)
    assert done.returncode == 0, done.stderr
    # with and without ZNorm at a rate that suits it
    assert float(done.stdout.strip().rpartition(" ")[2]) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--no_znorm"],
        pytest.param(["--devices=2", "--strategy=ddp_spawn"], marks=pytest.mark.long),
        ["--precision=bf16-true"],
    ],
    ids=str,
)
def test_fabric(flags):
    done = run("fabric.py", "--epochs=8", "--accelerator=cpu", *flags)
    assert done.returncode == 0, done.stderr
    (last,) = [line for line in done.stdout.splitlines() if line.startswith("epoch 8")]
    accuracy, steps, skipped = re.fullmatch(
        r"epoch 8: accuracy (.*), (\d+) steps normalized, (\d+) skipped", last
    ).groups()
    assert float(accuracy) > 0.85
    assert (int(steps), int(skipped)) == (0 if flags == ["--no_znorm"] else 192, 0)


@pytest.mark.long
def test_learning_rate_finder():
    done = run("learning_rate_finder.py", "--steps=20", "--out=out")
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv("out/suggestions.csv")
    assert list(frame["method"]) == ["SGD", "SGD + ZNorm", "Adam", "Adam + ZNorm"]
    rates = frame.set_index("method")["rate of the lowest loss"]
    assert rates["SGD"] > 5 * rates["SGD + ZNorm"]
    size_of_png(Path("out/curves.png"))
    assert not list(Path().glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--no_znorm"]], ids=str)
def test_gradient_monitor(flags):
    done = run("gradient_monitor.py", "--epochs=1", "--batches=3", "--out=out", *flags)
    assert done.returncode == 0, done.stderr
    width, height = size_of_png(Path("out/gradients.png"))
    assert height > 400
    assert width > 1000 if not flags else width < 1000  # two panels, or one
    assert done.stdout.strip().splitlines()[-1].endswith("gradients.png")


def test_configurations_name_what_the_demo_says():
    for name in ("digits", "brain_mri"):
        config = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.Adam"
        assert "znorm" not in config


def test_characters():
    """No character of the future has a part in a prediction, and no topic is in two splits."""
    model, data = CharacterTransformer(layers=2).eval(), PythonTopics(batch_size=3, steps=5)
    data.setup()
    assert {name: len(text) > 10_000 for name, text in data.splits.items()} == dict.fromkeys(data.splits, True)
    assert sum(map(len, data.splits.values())) == sum(map(len, topics.values()))
    batches = list(data.train_dataloader())
    assert [batch.shape for batch in batches] == [(3, 65)] * 5
    characters = batches[0][:, :-1]
    changed = characters.clone()
    changed[:, 40:] = 7
    torch.testing.assert_close(model(characters)[:, :40], model(changed)[:, :40])
    assert not torch.allclose(model(characters)[:, 40:], model(changed)[:, 40:])
    rows = torch.cat(list(data.val_dataloader()))
    assert torch.equal(rows[1:, 0], rows[:-1, -1])  # each snippet begins with the last target of the one before
    assert torch.equal(rows[:, :-1].flatten(), data.splits["val"][: rows.shape[0] * 64])
