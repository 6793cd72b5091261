"""Images that lie in two splits."""

import os
import shutil
import warnings

import pytest

from lightning_znorm.vision.data import _overlap
from tests.vision.data.trees import made, ready

WAYS = {"copy": shutil.copy, "link": os.link, "symlink": lambda path, to: os.symlink(os.path.abspath(path), to)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arguments", [{}, {"on_device": True}, {"on_device": True, "cache": "cache"}])
def test_told(tree, way, arguments):
    WAYS[way](tree / "test" / "ant" / "0.png", tree / "train" / "bee" / "leak.png")
    WAYS[way](tree / "test" / "bee" / "1.png", tree / "valid" / "bee" / "leak.png")
    with pytest.warns(UserWarning, match=r"lie in more than one split") as told:
        ready(**arguments)
    assert [str(warning.message) for warning in told] == [
        "2 image(s) lie in more than one split, the first as tree/train/bee/leak.png (train) and tree/test/ant/0.png"
        " (test). They do not show how a model does on new images: remove them from one of the splits."
    ]


def test_told_of_what_is_held_out(tree):
    """Here all training images of a class are the same one."""
    shutil.rmtree(tree / "valid")
    for number in range(1, 10):
        shutil.copy(tree / "train" / "ant" / "0.png", tree / "train" / "ant" / f"{number}.png")
    with pytest.warns(UserWarning, match=r"^1 image\(s\) lie .*\(train\) and .*\(val\)"):
        ready()


def test_linked_folder(tree):
    shutil.rmtree(tree / "valid")
    (tree / "valid").symlink_to("test", target_is_directory=True)
    with pytest.warns(UserWarning, match=r"^4 image\(s\) lie .*tree/valid/ant/0.png \(val\) and tree/test/ant/0.png"):
        ready()


class TestNotTold:
    @pytest.fixture(autouse=True)
    def _no_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield

    def test_other_images(self, tree):
        train, test = ({path.stat().st_size for path in (tree / split).rglob("*.png")} for split in ("train", "test"))
        assert train & test
        ready()

    def test_twice_in_one_split(self, tree):
        shutil.copy(tree / "train" / "ant" / "0.png", tree / "train" / "bee" / "copy.png")
        ready()

    def test_same_end(self, tree):
        for split in ("train", "test"):
            path = tree / split / "ant" / "0.png"
            path.write_bytes(path.read_bytes() + bytes(100))
        ready()

    def test_images_that_are_not_used(self, tree):
        shutil.copy(tree / "train" / "ant" / "0.png", tree / "test" / "ant" / "2.png")
        module = next(module for module in (made(eval_per_class=2, seed=seed) for seed in range(20)) if skips(module))
        module.setup()

    def test_without_a_test_split(self, tree):
        shutil.rmtree(tree / "test")
        made().setup("fit")

    def test_file_that_cannot_be_read(self, tree):
        (tree / "train" / "ant" / "9.png").unlink()
        (tree / "train" / "ant" / "9.png").symlink_to("nowhere.png")
        made().setup("fit")


def skips(module):
    """Whether a module leaves out the third image of a class of the test split."""
    return "2.png" not in [path.name for path, label in module.load("test").samples.files if label == 0]


class TestCost:
    @pytest.fixture
    def read(self, monkeypatch):
        """The files that are read whole."""
        digest, paths = _overlap._read_digest, []
        monkeypatch.setattr(_overlap, "_read_digest", lambda file: paths.append(file.path) or digest(file))
        return paths

    @pytest.fixture
    def compared(self, monkeypatch):
        """How many files were compared, each time."""
        counts = []
        monkeypatch.setattr(
            "lightning_znorm.vision.data.image_folder.describe_overlap",
            lambda splits: counts.append(sum(map(len, splits.values()))),
        )
        return counts

    def test_only_those_are_read_that_may_be_the_same(self, tree, read):
        shutil.copy(tree / "train" / "ant" / "0.png", tree / "test" / "bee" / "2.png")
        with pytest.warns(UserWarning, match="lie in more than one split"):
            ready()
        assert sorted(read) == [tree / "test" / "bee" / "2.png", tree / "train" / "ant" / "0.png"]

    @pytest.mark.filterwarnings("ignore:.*lie in more than one split")
    def test_of_very_many_only_links_are_found(self, tree, read, monkeypatch):
        monkeypatch.setattr(_overlap, "_MOST_READ", 0)
        shutil.copy(tree / "train" / "ant" / "0.png", tree / "test" / "bee" / "2.png")
        os.link(tree / "train" / "ant" / "1.png", tree / "test" / "bee" / "3.png")
        with pytest.warns(UserWarning, match=r"^1 image\(s\) lie .*tree/train/ant/1.png .*tree/test/bee/3.png"):
            ready()
        assert read == []

    def test_once_where_there_is_a_cache(self, tree, compared):
        arguments = {"on_device": True, "cache": "cache"}
        ready(**arguments)
        assert compared == [30]
        ready(**arguments)
        assert compared == [30]
        (tree / "test" / "ant" / "0.png").touch()
        ready(**arguments)
        assert compared == [30, 30]

    def test_with_the_training_split_where_there_is_none(self, tree, compared):
        made().setup("test")
        assert compared == []
        module = ready()
        module.setup()
        assert compared == [30]

    def test_by_one_rank(self, tree, compared, monkeypatch):
        monkeypatch.setattr("lightning_znorm.vision.data.image_folder.rank_zero_only.rank", 1)
        ready()
        assert compared == []
