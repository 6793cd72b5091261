"""A model of timm on a folder of images, compared by someone who knows nothing but its name."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests import warm
from tests.compare.helpers import ROOT

ANSWERS = {"better", "worse", "equivalent", "undecided"}


@pytest.fixture
def images():
    """Two classes that differ by the direction of their stripes, under noise."""
    rng = np.random.default_rng(0)
    stripes = np.broadcast_to(np.where(np.arange(32) // 4 % 2, 160, 96), (32, 32))
    for split, count in (("train", 24), ("valid", 12), ("test", 12)):
        for name, pattern in (("across", stripes), ("along", stripes.T)):
            folder = Path("images", split, name)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = pattern[..., None] + rng.normal(0, 40, size=(32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_timm_model_ends_in_one_of_four_answers(images):
    flags = ["--model=lightning_znorm.vision.ImageClassifier", "--model.backbone=timm:test_resnet"]
    flags += ["--model.num_classes=2", "--data=lightning_znorm.vision.ImageFolder", "--data.root=images"]
    flags += ["--data.batch_size=8", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    flags += ["--compare.methods=none,znorm", "--compare.monitor=val_acc", "--compare.margin=0.05", "--compare.jobs=2"]
    done = warm.run("-m", "lightning_znorm", "compare", *flags, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    summary = pd.read_csv("comparison/summary.csv").set_index("method")
    assert summary.loc["znorm", "answer"] in ANSWERS
    assert summary.loc["znorm", "pairs"] == 8
    assert re.search(r"^- `znorm` .*8 pairs", done.stdout, re.MULTILINE)
    runs = pd.read_csv("comparison/runs.csv")
    (key,) = [column for column in runs if column.endswith(".lr")]
    selection = runs[runs["stage"] == "selection"]
    assert (selection.groupby("method")[key].nunique() == 9).all()
    assert selection.groupby("method").size().tolist() == [15, 15]
    assert (runs[runs["stage"] == "confirmation"].groupby("method")[key].nunique() == 1).all()
    assert set(runs["status"]) == {"finished"}
