"""The splits of the paper's real data sets, where they are there: set ZNORM_DATA to their folder."""

import warnings

import pytest

from lightning_znorm.vision import ImageFolder, LGGSegmentation
from tests.data_sets import find_data_set


@pytest.mark.slow
@pytest.mark.parametrize("only_tumor", [False, True])
def test_lgg(only_tumor):
    data = LGGSegmentation(str(find_data_set("kaggle_3m")), image_size=64, only_tumor=only_tumor)
    data.setup()
    slices = {name: len(split) for name, split in data._splits.items()}
    patients = {name: set(split.cases.tolist()) for name, split in data._splits.items()}
    assert {name: len(numbers) for name, numbers in patients.items()} == {"train": 78, "val": 16, "test": 16}
    assert set.union(*patients.values()) == set(range(110))
    if only_tumor:
        assert slices == {"train": 974, "val": 211, "test": 186}
    else:
        assert slices == {"train": 2791, "val": 567, "test": 571}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts"),
    [("cifar10-jpeg", (45_000, 5_000, 10_000)), ("pcam-12k", (8_000, 2_000, 2_000))],
)
def test_trees(name, counts):
    data = ImageFolder(str(find_data_set(name)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of images that lie in two splits
        data.setup()
    assert tuple(len(data._splits[split]) for split in ("train", "val", "test")) == counts
    files = [path for split in data._splits.values() for path, _ in split.samples.files]
    assert len(files) == len(set(files))
