"""How the files of the LGG data set may be coded and named."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from lightning_znorm.vision.data.lgg import find_patients, read_volume
from tests.vision.data.patients import COUNT, SIDE, SLICES, SPLITS, images, patient, pixels, plant_patients, ready


@pytest.fixture
def folder():
    return plant_patients()


def rewrite(path, change):
    """Save an image with its pixels changed."""
    with Image.open(path) as image:
        array = np.asarray(image)
    Image.fromarray(change(array)).save(path)


class TestMasks:
    @pytest.mark.parametrize(
        "change",
        [
            lambda mask: mask // 255,
            lambda mask: mask // 2,
            lambda mask: mask > 0,
            lambda mask: np.dstack([mask, 0 * mask, 0 * mask]),
            lambda mask: mask.astype(np.uint16) * 257,
        ],
        ids=["1", "127", "bits", "red", "16-bit"],
    )
    @pytest.mark.parametrize("size", [SIDE, 24])
    def test_codings_mean_the_same(self, folder, change, size):
        expected = read_volume(folder / patient(1), size).masks
        for path in (folder / patient(1)).glob("*_mask.tif"):
            rewrite(path, change)
        assert expected.any()
        assert torch.equal(read_volume(folder / patient(1), size).masks, expected)

    def test_resized_as_before(self, folder):
        """The results that are published come from masks of 0 and 255, resized and cut at a half."""
        stored = torch.stack([torch.from_numpy(pixels(1, slice_)[1])[None] for slice_ in range(1, SLICES + 1)])
        expected = functional.resize(stored, [21, 21], antialias=True) >= 128
        assert torch.equal(read_volume(folder / patient(1), 21).masks, expected.to(torch.uint8))

    def test_other_values(self, folder):
        path = folder / patient(2) / f"{patient(2)}_2_mask.tif"
        rewrite(path, lambda mask: mask // 2 + np.eye(SIDE, dtype=np.uint8))
        with pytest.raises(ValueError, match=rf"{path.name} is not a mask.*values are 0, 1, 127, 128\."):
            ready()

    @pytest.mark.parametrize("on_device", [False, True])
    def test_split_without_tumor(self, folder, on_device):
        for mask in folder.rglob("*_mask.tif"):
            rewrite(mask, np.zeros_like)
        with pytest.warns(UserWarning, match=r"No mask of the split `.*has a tumor") as told:
            ready(on_device=on_device)
        assert [f"`{split}`" in str(warning.message) for split, warning in zip(SPLITS, told, strict=True)] == [True] * 3

    def test_inverted(self, folder):
        for mask in folder.rglob("*_mask.tif"):
            rewrite(mask, lambda mask: np.where(np.eye(SIDE), 0, 255).astype(np.uint8))
        with pytest.warns(UserWarning, match=r"masks of the split `.*most pixels are tumor.*inverted"):
            ready()

    def test_slices_from_zero_on(self, folder):
        for ending in ("", "_mask"):
            first = folder / patient(1) / f"{patient(1)}_1{ending}.tif"
            shutil.copy(first, first.with_name(f"{patient(1)}_0{ending}.tif"))
        with pytest.raises(ValueError, match=r"_0\.tif has the number 0, but slices are numbered from 1"):
            read_volume(folder / patient(1), SIDE)

    def test_one_pixel_is_a_tumor(self, folder):
        for mask in folder.rglob("*_mask.tif"):
            rewrite(mask, lambda mask: np.eye(1, mask.size, dtype=np.uint8).reshape(mask.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ready()

    def test_sixteen_bits(self, folder):
        path = folder / patient(2) / f"{patient(2)}_2.tif"
        rewrite(path, lambda image: image[..., 0].astype(np.uint16) * 16)
        with pytest.raises(ValueError, match=rf"{path.name} has more than 8 bits.*Convert it to 8 bits"):
            ready()


class TestEndings:
    @pytest.mark.parametrize("ending", [".TIF", ".Tif", ".tiff"])
    def test_others(self, folder, ending):
        expected = images(ready(), "test")
        for path in [*folder.rglob("*.tif")]:
            path.rename(path.with_suffix(ending))
        assert torch.equal(images(ready(), "test"), expected)

    def test_counted_where_the_whole_set_is_there(self, folder, monkeypatch):
        monkeypatch.setattr("lightning_znorm.vision.data.lgg._PATIENTS", COUNT)
        monkeypatch.setattr("lightning_znorm.vision.data.lgg._SLICES", COUNT * SLICES)
        for path in [*(folder / patient(0)).iterdir()]:
            path.rename(path.with_suffix(".TIF"))
        ready()

    def test_same_slice_twice(self, folder):
        path = folder / patient(2) / f"{patient(2)}_2.tif"
        shutil.copy(path, path.with_name(f"{patient(2)}_02.tif"))
        with pytest.raises(ValueError, match=rf"{patient(2)}_02.tif and .*{patient(2)}_2.tif are the same slice"):
            ready()

    def test_files_of_other_kinds(self, folder):
        expected = images(ready(), "test")
        (folder / ".DS_Store").write_bytes(b"")
        (folder / f"._{patient(0)}").mkdir()
        for name in (f"._{patient(2)}_1.tif", "Thumbs.db", f"{patient(2)}.tif"):
            (folder / patient(2) / name).write_bytes(b"x")
        assert torch.equal(images(ready(), "test"), expected)


def revisit(folder, number, date="20010101"):
    """Add the slices of a patient at another date."""
    copy = folder / f"{patient(number)[:-8]}{date}"
    shutil.copytree(folder / patient(number), copy)
    for path in copy.iterdir():
        path.rename(path.with_name(path.name.replace(patient(number), copy.name)))
    return copy


class TestPatients:
    def numbers(self, module):
        return {split: module._splits[split].cases for split in SPLITS}

    def test_dates_of_one_patient_stay_together(self, folder):
        for number in range(COUNT):
            revisit(folder, number)
        for seed in range(5):
            module = ready(patients=True, seed=seed)
            counts = torch.cat([*self.numbers(module).values()]).bincount()
            assert counts.tolist() == [2 * SLICES] * COUNT
            parts = [set(cases.tolist()) for cases in self.numbers(module).values()]
            assert [len(part) for part in parts] == [6, 1, 1]
            assert set.union(*parts) == set(range(COUNT))

    def test_each_volume_is_standardized_by_itself(self, folder):
        copy = revisit(folder, 2)
        for path in copy.iterdir():
            if "mask" not in path.name:
                rewrite(path, lambda image: image + 100)
        split = next(split for split in ready(patients=True)._splits.values() if 2 in split.cases)
        means = split.mean[split.cases == 2]
        assert len(means) == 2 * SLICES
        torch.testing.assert_close(means[:SLICES] + 100, means[SLICES:])

    @pytest.mark.parametrize("arguments", [{}, {"only_tumor": True}])
    def test_numbers(self, folder, arguments):
        """The slices of a patient have values that only it has."""
        module = ready(patients=True, **arguments)
        for split in module._splits.values():
            assert split.cases.dtype == torch.int64
            assert split.cases.shape == (len(split.samples),)
            lowest = split.samples.images.flatten(1).amin(dim=1)
            assert torch.equal(lowest.long() // 10, split.cases)

    def test_off(self, folder):
        assert [*self.numbers(ready()).values()] == [None] * 3

    @pytest.mark.parametrize("names", [["A_1", "A_10", "A_2", "B_1"], ["AB_0001", "AB_0002", "AC_0001"]])
    def test_order_is_that_of_the_folders(self, names):
        """So that the splits of sets with a folder for each patient stay what they were."""
        folders = [Path("kaggle_3m", f"TCGA_{name}_{20000101 + number}") for number, name in enumerate(names)]
        for path in folders:
            path.mkdir(parents=True)
        assert find_patients(Path("kaggle_3m")) == [[path] for path in sorted(folders)]

    def test_folders_without_a_date(self):
        for name in ("TCGA_A_1", "TCGA_A_1_20000101", "TCGA_A_2", "TCGA_A_2000"):
            Path("kaggle_3m", name).mkdir(parents=True)
        names = [[path.name for path in folders] for folders in find_patients(Path("kaggle_3m"))]
        assert names == [["TCGA_A_1", "TCGA_A_1_20000101"], ["TCGA_A_2"], ["TCGA_A_2000"]]
