import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_znorm.vision.data.lgg import read_volume
from tests.vision.data.patients import COUNT, SIDE, SLICES, SPLITS, images, made, patient, pixels, plant_patients, ready


@pytest.fixture
def folder():
    return plant_patients()


class TestReading:
    @pytest.mark.parametrize("on_device", [False, True])
    def test_shapes_and_values(self, folder, on_device):
        module = ready(on_device=on_device, batch_size=3)
        batch, masks = next(iter(module.train_dataloader()))
        assert (batch.shape, masks.shape) == ((3, 3, SIDE, SIDE), (3, 1, SIDE, SIDE))
        assert (batch.dtype, masks.dtype) == (torch.float32, torch.float32)
        assert set(masks.unique().tolist()) <= {0, 1}

    def test_slices_are_in_the_order_of_their_numbers(self, folder):
        volume = read_volume(folder / patient(3), SIDE)
        expected = [pixels(3, slice_) for slice_ in range(1, SLICES + 1)]
        assert np.array_equal(volume.images.permute(0, 2, 3, 1), [image for image, _ in expected])
        assert np.array_equal(volume.masks[:, 0], [mask // 255 for _, mask in expected])

    def test_ten_comes_after_nine(self, folder):
        own = folder / patient(0)
        for slice_ in range(SLICES + 1, 12):
            for end in ("", "_mask"):
                shutil.copy(own / f"{own.name}_1{end}.tif", own / f"{own.name}_{slice_}{end}.tif")
        shutil.copy(own / f"{own.name}_2_mask.tif", own / f"{own.name}_10_mask.tif")
        assert read_volume(own, SIDE).masks.flatten(1).any(dim=1).nonzero().flatten().tolist() == [1, 2, 9]

    def test_each_volume_is_standardized_per_channel(self, folder):
        for split, count in (("train", 6), ("val", 1), ("test", 1)):
            volumes = images(ready(), split)
            if split != "train":
                assert len(volumes) == count * SLICES
                torch.testing.assert_close(volumes.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
                torch.testing.assert_close(volumes.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)

    def test_constant_channel(self, folder):
        for slice_ in range(1, SLICES + 1):
            image, _ = pixels(0, slice_)
            image[:, :, 1] = 7
            Image.fromarray(image).save(folder / patient(0) / f"{patient(0)}_{slice_}.tif")
        volume = read_volume(folder / patient(0), SIDE)
        assert (volume.mean[1], volume.std[1]) == (7, 1)

    @pytest.mark.parametrize("size", [16, 64])
    def test_other_size(self, folder, size):
        module = ready(image_size=size)
        batch, masks = next(iter(module.test_dataloader()))
        assert batch.shape[1:] == (3, size, size)
        share = torch.stack([mask.mean() for mask in masks])
        torch.testing.assert_close(share, torch.tensor([0, 0.125, 0.125, 0]))

    def test_only_tumor(self, folder):
        module = ready(only_tumor=True)
        for split in ("train", "val", "test"):
            for _, masks in getattr(module, f"{split}_dataloader")():
                assert masks.flatten(1).any(dim=1).all()
        assert sum(len(batch) for batch, _ in module.train_dataloader()) == 6 * 2
        # standardized by the whole volume all the same
        assert images(module, "test").mean().abs() > 1e-4

    @pytest.mark.parametrize("root", [".", "kaggle_3m"])
    def test_root(self, folder, root):
        assert len(images(ready(root=root), "test")) == SLICES


class TestSplit:
    @pytest.mark.parametrize("seed", range(3))
    def test_disjoint_and_complete(self, folder, seed):
        module = ready(seed=seed)
        slices = torch.cat([module._splits[split].samples.images for split in SPLITS]).flatten(1)
        expected = [pixels(number, slice_)[0] for number in range(COUNT) for slice_ in range(1, SLICES + 1)]
        whole = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).flatten(1)
        assert len(slices) == len(whole)
        assert torch.equal(slices.unique(dim=0), whole.unique(dim=0))

    def test_by_patient(self, folder):
        module = ready()
        parts = module._share_out(list(range(20)))
        assert sorted(number for part in parts.values() for number in part) == list(range(20))
        assert [len(parts[split]) for split in ("train", "val", "test")] == [14, 3, 3]

    def test_follows_the_seed_of_the_module_alone(self, folder):
        first = images(ready(seed=1), "test")
        torch.manual_seed(99)
        assert torch.equal(first, images(ready(seed=1), "test"))
        assert any(not torch.equal(first, images(ready(seed=seed), "test")) for seed in (2, 3, 4))

    def test_too_few_patients(self, folder):
        with pytest.raises(ValueError, match=r"`val_share` \(0.5\).*`test_share` \(0.5\).* 8 patients"):
            ready(val_share=0.5, test_share=0.5)


class TestRefusals:
    def test_wrong_path(self):
        with pytest.raises(FileNotFoundError, match=r"`root` is 'nowhere'.*kaggle_3m.*Kaggle"):
            ready(root="nowhere")

    def test_no_patients(self):
        Path("empty").mkdir()
        with pytest.raises(FileNotFoundError, match=r"TCGA_.* in empty.*kaggle_3m"):
            ready(root="empty")

    def test_patient_is_missing(self, folder):
        shutil.rmtree(folder / patient(5))
        with pytest.raises(FileNotFoundError, match=r"data.csv lists 8 patients, but 1 .*TCGA_AB_0005"):
            ready()
        (folder / "data.csv").unlink()
        ready()

    def test_slices_at_the_end_are_missing(self, folder, monkeypatch):
        """Their names tell of no gap, but the number of all slices of the data set is known."""
        monkeypatch.setattr("lightning_znorm.vision.data.lgg._PATIENTS", COUNT)
        monkeypatch.setattr("lightning_znorm.vision.data.lgg._SLICES", COUNT * SLICES)
        ready()
        for end in ("", "_mask"):
            (folder / patient(2) / f"{patient(2)}_{SLICES}{end}.tif").unlink()
        with pytest.raises(FileNotFoundError, match=r"kaggle_3m has 31 masks of 8 patients, .* has 32.*data.csv"):
            ready()
        (folder / "data.csv").unlink()
        ready()

    @pytest.mark.parametrize("listed", ["TCGA_AB_00", "TCGA_AB_0001_1999", "TCGA_AB_0001_", "AB_0001", ""])
    def test_part_of_a_name_is_another_patient(self, folder, listed):
        with open(folder / "data.csv", "a") as table:
            table.write(f"{listed},1\n")
        with pytest.raises(FileNotFoundError, match=rf"data.csv lists 9 patients, but 1 .*such as {listed}\."):
            ready()

    def test_table_of_a_spreadsheet(self, folder):
        """It starts with a mark of the encoding."""
        content = "Patient,x\nTCGA_AB_0001,1\nTCGA_AB_0002_19990101,1\n"
        (folder / "data.csv").write_text(content, encoding="utf-8-sig")
        ready()

    @pytest.mark.parametrize(
        "content", [b"Name,x\na,1\n", b"Patient,x\n\xff\xfe,1\n", "Patient,x\na,1\n".encode("utf-16"), bytes(9), b""]
    )
    def test_other_table(self, folder, content):
        (folder / "data.csv").write_bytes(content)
        with pytest.raises(ValueError, match=r"kaggle_3m/data.csv .*`Patient`.*remove it"):
            ready()

    @pytest.mark.parametrize("on_device", [False, True])
    def test_no_tumor(self, folder, on_device):
        for mask in folder.rglob("*_mask.tif"):
            Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(mask)
        with pytest.raises(ValueError, match=r"`only_tumor`.* split `train`"):
            ready(only_tumor=True, on_device=on_device)

    def test_slice_is_missing(self, folder):
        for end in ("", "_mask"):
            (folder / patient(2) / f"{patient(2)}_3{end}.tif").unlink()
        with pytest.raises(FileNotFoundError, match=rf"{patient(2)}_3.tif is missing.*incomplete"):
            ready()

    @pytest.mark.parametrize("end", ["", "_mask"])
    def test_half_a_pair_is_missing(self, folder, end):
        (folder / patient(2) / f"{patient(2)}_{SLICES}{end}.tif").unlink()
        with pytest.raises(FileNotFoundError, match=rf"{patient(2)}_{SLICES}{end}.tif is missing"):
            ready()

    def test_patient_without_slices(self, folder):
        shutil.rmtree(folder / patient(2))
        (folder / patient(2)).mkdir()
        with pytest.raises(FileNotFoundError, match=rf"no slice `{patient(2)}_1.tif`"):
            ready()

    @pytest.mark.parametrize("end", ["", "_mask"])
    def test_other_size_than_its_neighbours(self, folder, end):
        path = folder / patient(2) / f"{patient(2)}_2{end}.tif"
        with Image.open(path) as image:
            image.resize((16, 16), Image.Resampling.NEAREST).save(path)
        with pytest.raises(ValueError, match=rf"{path.name} has 16 x 16 pixels, expected 32 x 32"):
            ready()

    @pytest.mark.parametrize("content", [b"", b"no image", None])
    @pytest.mark.parametrize("end", ["", "_mask"])
    def test_corrupt(self, folder, end, content):
        path = folder / patient(2) / f"{patient(2)}_2{end}.tif"
        path.write_bytes(path.read_bytes()[:900] if content is None else content)
        with pytest.raises(ValueError, match=rf"{path.name} is not a readable image"):
            ready()

    @pytest.mark.parametrize(("argument", "value"), [("val_share", 0), ("test_share", 1.5), ("image_size", 8)])
    def test_bad_arguments(self, argument, value):
        with pytest.raises(ValueError, match=f"`{argument}`.*{value}"):
            made(**{argument: value})
