import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from lightning_znorm.vision import CIFAR10

ARCHIVE = "cifar-10-python.tar.gz"


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(server, tmp_path, monkeypatch):
    """A server of CIFAR-10 with two training files of 20 and a test file of 10 images, instead of the real one."""
    source = tmp_path / "source" / "cifar-10-batches-py"
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    counts = {"data_batch_1": 20, "data_batch_2": 20, "test_batch": 10}
    for name, count in counts.items():
        images = rng.integers(256, size=(count, 3072), dtype=np.uint8)
        (source / name).write_bytes(pickle.dumps({"data": images, "labels": list(range(10)) * (count // 10)}))
    (source / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with tarfile.open(server.folder / ARCHIVE, "w:gz") as archive:
        archive.add(source, source.name)
    lists = [[name, md5(source / name)] for name in counts]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server.url}/{ARCHIVE}")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(server.folder / ARCHIVE))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:2])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[2:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(source / "batches.meta")})
    return server


def made(**arguments):
    return CIFAR10("data", **{"val_size": 10, "augment": False, "num_workers": 0, **arguments})


def whole(module, split):
    return module._splits[split].samples


def test_downloads_once_and_splits(cifar):
    module = made()
    module.prepare_data()
    module.setup()
    assert [len(whole(module, split)) for split in ("train", "val", "test")] == [30, 10, 10]
    train, val = (whole(module, split).images.flatten(1) for split in ("train", "val"))
    assert len(torch.cat([train, val]).unique(dim=0)) == 40
    assert whole(module, "test").targets.tolist() == list(range(10))
    asked = len(cifar.requests)
    module.prepare_data()
    made().prepare_data()
    assert len(cifar.requests) == asked


def test_values_are_those_of_the_files(cifar):
    module = made(batch_size=10)
    module.prepare_data()
    module.setup("test")
    images, labels = next(iter(module.test_dataloader()))
    raw = datasets.CIFAR10("data", train=False)
    expected = torch.from_numpy(raw.data).permute(0, 3, 1, 2) / 255.0
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    torch.testing.assert_close(images, (expected - mean[:, None, None]) / std[:, None, None])
    assert labels.tolist() == raw.targets


def test_split_follows_the_seed(cifar):
    def val(seed):
        module = made(seed=seed)
        module.prepare_data()
        module.setup("fit")
        return whole(module, "val").images

    assert torch.equal(val(1), val(1))
    assert not torch.equal(val(1), val(2))


def test_interrupted_download_is_redone(cifar):
    cifar.cut[ARCHIVE] = 100
    with pytest.raises(RuntimeError, match=r"cifar-10-python.tar.gz into data .*MD5.*Try again"):
        made().prepare_data()
    assert Path("data", ARCHIVE).stat().st_size == 100
    cifar.cut.clear()
    module = made()
    module.prepare_data()
    module.setup()


def test_damaged_file_is_unpacked_again(cifar):
    made().prepare_data()
    asked = len(cifar.requests)
    damaged = Path("data", "cifar-10-batches-py", "data_batch_2")
    damaged.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"CIFAR-10 is not in .*cifar-10-batches-py.*damaged.*`download=True`"):
        made().setup()
    made().prepare_data()
    made().setup()
    assert len(cifar.requests) == asked


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_names_of_the_classes_are_unpacked_again(cifar, content):
    """torchvision takes no notice of that file when it looks what is there."""
    made().prepare_data()
    asked = len(cifar.requests)
    path = Path("data", "cifar-10-batches-py", "batches.meta")
    path.unlink() if content is None else path.write_bytes(content)
    module = made()
    module.prepare_data()
    module.setup()
    assert len(cifar.requests) == asked


def test_no_server(cifar, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/nothing.tar.gz")
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:1/nothing.tar.gz failed.*put the file into data by hand"):
        made().prepare_data()


def test_without_download(cifar):
    module = made(download=False)
    module.prepare_data()
    assert cifar.requests == []
    with pytest.raises(RuntimeError, match=r"data/cifar-10-batches-py.*`root`"):
        module.setup()


def test_read_only_folder(cifar):
    made().prepare_data()
    Path("data", ".lock").unlink()
    made().prepare_data()
    assert not Path("data", ".lock").exists()


def test_too_many_for_validation(cifar):
    made().prepare_data()
    with pytest.raises(ValueError, match=r"`val_size`.* 40 .* 40"):
        made(val_size=40).setup()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_file_is_not_executed(cifar):
    made().prepare_data()
    for path in Path("data", "cifar-10-batches-py").iterdir():
        path.write_bytes(pickle.dumps(Evil()))
    module = made(download=False)
    module.prepare_data()
    with pytest.raises(RuntimeError, match=r"CIFAR-10 is not in .*cifar-10-batches-py.*damaged"):
        module.setup()
    assert not Path("executed").exists()
