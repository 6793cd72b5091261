import errno
import gzip
import hashlib
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torchvision import datasets

from lightning_znorm.vision import PCam
from lightning_znorm.vision.data.pcam import Patches

SIZES = {"train": 12, "val": 5, "test": 4}
NAMES = {split: [files[kind][0] for kind in ("images", "targets")] for split, files in datasets.PCAM._FILES.items()}


def write(folder, split, count):
    rng = np.random.default_rng(count)
    images, targets = NAMES[split]
    with h5py.File(folder / images, "w") as file:
        file["x"] = rng.integers(256, size=(count, 96, 96, 3), dtype=np.uint8)
    with h5py.File(folder / targets, "w") as file:
        file["y"] = rng.integers(2, size=(count, 1, 1, 1), dtype=np.uint8)


@pytest.fixture
def folder():
    folder = Path("data", "pcam")
    folder.mkdir(parents=True)
    for split, count in SIZES.items():
        write(folder, split, count)
    return folder


@pytest.fixture
def pcam(server, monkeypatch):
    """A server of small PCam files, instead of Zenodo."""
    files = {}
    for split, count in SIZES.items():
        write(server.folder, split, count)
        files[split] = {}
        for kind, name in zip(("images", "targets"), NAMES[split], strict=True):
            path = server.folder / name
            packed = gzip.compress(path.read_bytes())
            (server.folder / f"{name}.gz").write_bytes(packed)
            path.unlink()
            files[split][kind] = (name, "id", hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(datasets.PCAM, "_FILES", files)
    monkeypatch.setattr(PCam, "url", server.url)
    return server


def test_missing_extra(monkeypatch):
    monkeypatch.setattr("lightning_znorm.errors.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'`PCam` .* h5py.*pip install "lightning-znorm\[paper\]"'):
        PCam("data")


def made(**arguments):
    return PCam("data", **{"augment": False, "num_workers": 0, **arguments})


class TestReading:
    def test_is_what_torchvision_reads(self, folder):
        module = made(batch_size=4)
        module.setup()
        images, labels = next(iter(module.test_dataloader()))
        raw = datasets.PCAM("data", "test")
        mean, std = torch.tensor([0.7008, 0.5384, 0.6916]), torch.tensor([0.2350, 0.2774, 0.2129])
        for index, (image, label) in enumerate(raw[number] for number in range(4)):
            expected = (torch.from_numpy(np.array(image)) / 255.0 - mean) / std
            torch.testing.assert_close(images[index], expected.permute(2, 0, 1))
            assert labels[index] == label

    @pytest.mark.slow
    @pytest.mark.parametrize("on_device", [False, True])
    def test_by_workers(self, folder, on_device):
        alone, by_workers = (made(num_workers=number, on_device=on_device and number > 0) for number in (0, 2))
        alone.setup("test")
        alone._splits["test"].samples[0]  # a file that is open before the workers fork
        by_workers._splits = alone._splits
        for one, other in zip(alone.test_dataloader(), by_workers.test_dataloader(), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])

    def test_patches_can_be_sent_to_a_process(self, folder):
        patches = Patches(*(folder / name for name in NAMES["val"]))
        copy = pickle.loads(pickle.dumps(patches))
        assert torch.equal(copy[3][0], patches[3][0])

    def test_file_is_not_read_whole(self, folder):
        patches = Patches(*(folder / name for name in NAMES["train"]))
        assert patches[3][0].shape == (3, 96, 96)
        assert isinstance(patches._data, h5py.Dataset)
        in_memory = [value for value in vars(patches).values() if isinstance(value, (torch.Tensor, np.ndarray))]
        assert [len(value) for value in in_memory] == [12]

    def test_file_that_goes_away(self, folder):
        patches = Patches(*(folder / name for name in NAMES["train"]))
        (folder / NAMES["train"][0]).unlink()
        with pytest.raises(FileNotFoundError, match=rf"no data/pcam/{NAMES['train'][0]}"):
            patches[0]


class TestDamage:
    def test_missing(self, folder):
        (folder / NAMES["train"][0]).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{NAMES['train'][0]}.*`download=True`.*`root`"):
            made().setup()

    @pytest.mark.parametrize("kind", [0, 1])
    def test_truncated(self, folder, kind):
        path = folder / NAMES["val"][kind]
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(ValueError, match=rf"{path.name} is damaged .*Remove it"):
            made().setup("validate")

    def test_truncated_while_it_is_read(self, folder):
        path = folder / NAMES["train"][0]
        with h5py.File(path, "w") as file:
            images = np.zeros((12, 96, 96, 3), np.uint8)
            file.create_dataset("x", data=images, chunks=(1, 96, 96, 3), compression="gzip")
            offset = file["x"].id.get_chunk_info(7).byte_offset
        data = bytearray(path.read_bytes())
        data[offset : offset + 8] = b"\xff" * 8
        path.write_bytes(data)
        module = made()
        module.setup("fit")
        with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
            list(module.train_dataloader())

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (PermissionError(errno.EACCES, "Unable to open file"), ""),
            (BlockingIOError(errno.EAGAIN, "Unable to lock file"), ".*HDF5_USE_FILE_LOCKING=FALSE"),
        ],
    )
    def test_what_is_no_damage(self, folder, monkeypatch, error, remedy):
        """Nobody should fetch eight gigabytes again for want of a permission."""

        def refuse(path):
            raise error

        monkeypatch.setattr(h5py, "File", refuse)
        with pytest.raises(OSError, match=rf"test_y.h5 cannot be read \(.*Unable{remedy}") as caught:
            made().setup("test")
        assert caught.value.errno == error.errno
        assert "damaged" not in str(caught.value)

    def test_no_hdf5(self, folder):
        path = folder / NAMES["test"][0]
        path.write_text("<html>quota exceeded</html>")
        with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
            made().setup("test")

    def test_other_data_in_it(self, folder):
        path = folder / NAMES["test"][1]
        with h5py.File(path, "w") as file:
            file["z"] = np.zeros(4)
        with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
            made().setup("test")

    def test_pair_that_does_not_fit(self, folder):
        (folder / NAMES["test"][1]).write_bytes((folder / NAMES["val"][1]).read_bytes())
        images, targets = NAMES["test"]
        with pytest.raises(ValueError, match=rf"{images} has 4 patches, but .*{targets} 5 labels.*remove both"):
            made().setup("test")


class TestOtherContent:
    """Files that HDF5 reads, but that are not PCam's."""

    def refuse(self, folder, kind, content, message):
        path = folder / NAMES["test"][kind]
        with h5py.File(path, "w") as file:
            file["xy"[kind]] = content
        with pytest.raises(ValueError, match=rf"{path.name} has {message}.*not PCam's: remove it and download"):
            made().setup("test")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                np.zeros((4, 96, 96, 3), np.float32),
                r"patches of shape \(4, 96, 96, 3\) and dtype float32, .* and uint8",
            ),
            (np.zeros((4, 96, 96, 3), np.uint16), r"patches of .* dtype uint16"),
            (np.zeros((4, 96, 96, 3), bool), r"patches of .* dtype bool"),
            (np.zeros((4, 48, 48, 3), np.uint8), r"patches of shape \(4, 48, 48, 3\) .*expected \(N, 96, 96, 3\)"),
            (np.zeros((4, 96, 96), np.uint8), r"patches of shape \(4, 96, 96\)"),
            (np.zeros((0, 96, 96, 3), np.uint8), r"patches of shape \(0, 96, 96, 3\) .*N > 0"),
            (np.array(b"text"), r"patches of shape \(\) and dtype \|S4"),
        ],
        ids=["float", "uint16", "bool", "small", "gray", "empty", "string"],
    )
    def test_images(self, folder, content, message):
        self.refuse(folder, 0, content, message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (np.array([0, 255, 0, 255], np.uint8), "labels from 0 to 255, expected 0 and 1 only"),
            (np.array([0, -1, 0, 1], np.int64), "labels from -1 to 1"),
            (np.array([0, 1, 0, 1], np.float32), "labels of .* dtype float32, .*integers"),
            (np.array([b"0", b"1", b"0", b"1"]), r"labels of .* dtype \|S1"),
            (np.zeros(4, [("label", "u1")]), "labels of .* dtype .*label"),
        ],
        ids=["255", "negative", "float", "string", "record"],
    )
    def test_labels(self, folder, content, message):
        self.refuse(folder, 1, content.reshape(-1, 1, 1, 1), message)

    @pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2, 1, 1), ()])
    def test_shape_of_labels(self, folder, shape):
        self.refuse(folder, 1, np.zeros(shape, np.uint8), "labels of shape .*expected")

    @pytest.mark.parametrize("kind", [0, 1])
    def test_group(self, folder, kind):
        path, name = folder / NAMES["test"][kind], "xy"[kind]
        with h5py.File(path, "w") as file:
            file[f"{name}/z"] = np.zeros(4)
        with pytest.raises(ValueError, match=rf"{path.name} has no data set `{name}`, but a group .*remove it"):
            made().setup("test")

    def test_no_labels(self, folder):
        path = folder / NAMES["test"][1]
        with h5py.File(path, "w") as file:
            file["y"] = np.zeros((0, 1, 1, 1), np.uint8)
        with pytest.raises(ValueError, match=rf"has 4 patches, but .*{path.name} 0 labels"):
            made().setup("test")

    def test_link_out_of_the_file(self, folder):
        path = folder / NAMES["test"][0]
        with h5py.File(path, "w") as file:
            file["x"] = h5py.ExternalLink("/etc/hostname", "x")
        with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
            made().setup("test")


def test_files_are_closed(folder, monkeypatch):
    files, file = [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda path: files.append(file(path)) or files[-1])
    patches = Patches(*(folder / name for name in NAMES["train"]))
    assert [bool(opened) for opened in files] == [False, False]
    patches[0]
    assert [bool(opened) for opened in files] == [False, False, True]


class TestDownload:
    def test_once(self, pcam):
        module = made()
        module.prepare_data()
        module.setup()
        assert [len(module._splits[split].samples) for split in SIZES] == list(SIZES.values())
        assert set(pcam.requests) == {f"{name}.gz" for names in NAMES.values() for name in names}
        asked = len(pcam.requests)
        made().prepare_data()
        assert len(pcam.requests) == asked
        assert not list(Path("data", "pcam").glob("*.gz"))

    def test_interrupted_download_is_redone(self, pcam):
        name = NAMES["val"][0]
        pcam.cut[f"{name}.gz"] = 1000
        with pytest.raises(RuntimeError, match=rf"{name}.gz.* into data/pcam .*MD5"):
            made().prepare_data()
        assert not Path("data", "pcam", name).exists()
        pcam.cut.clear()
        complete = {path.name for path in Path("data", "pcam").glob("*.h5")}
        pcam.requests.clear()
        made().prepare_data()
        made().setup()
        assert complete
        assert set(pcam.requests) == {
            f"{each}.gz" for names in NAMES.values() for each in names if each not in complete
        }

    def test_interrupted_unpacking_is_redone(self, pcam, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr("lightning_znorm.vision.data._files.os.replace", interrupt)
            with pytest.raises(KeyboardInterrupt):
                made().prepare_data()
        assert not list(Path("data", "pcam").glob("*.h5"))
        pcam.requests.clear()
        made().prepare_data()
        made().setup()
        assert f"{NAMES['train'][0]}.gz" not in pcam.requests

    def test_no_server(self, pcam, monkeypatch):
        monkeypatch.setattr(PCam, "url", "http://127.0.0.1:1")
        with pytest.raises(RuntimeError, match=r"http://127.0.0.1:1/camelyon.* failed.*into data/pcam by hand"):
            made().prepare_data()

    def test_without_download(self, pcam):
        made(download=False).prepare_data()
        assert pcam.requests == []
