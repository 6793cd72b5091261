"""Which folders and files of a tree an ImageFolder reads, and what it says of the others."""

import shutil
import warnings
from pathlib import Path

import pytest

from lightning_znorm.vision.data._tree import Tree
from tests.vision.data.trees import COUNTS, expected, made, ready, values


def rename(tree, split, name):
    """Also to a name that differs in case only, on file systems that take no notice of it."""
    (tree / split).rename(tree / "other")
    (tree / "other").rename(tree / name)


def assert_whole(module):
    assert sorted(values(module, "train")) == expected("train")
    assert values(module, "val") == expected("valid")
    assert values(module, "test") == expected("test")


@pytest.fixture
def nothing_said():
    """What these tests do must not cause warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("nothing_said")
class TestNames:
    @pytest.mark.parametrize("name", ["Valid", "val", "VAL", "validation", "Validation"])
    def test_validation(self, tree, name):
        rename(tree, "valid", name)
        assert_whole(ready())

    @pytest.mark.parametrize("name", ["Train", "training", "TRAINING"])
    def test_training(self, tree, name):
        rename(tree, "train", name)
        assert_whole(ready())

    @pytest.mark.parametrize("name", ["Test", "testing", "Testing"])
    def test_test(self, tree, name):
        rename(tree, "test", name)
        assert_whole(ready())

    @pytest.mark.parametrize(
        ("first", "second"), [("valid", "val"), ("valid", "validation"), ("train", "training"), ("test", "testing")]
    )
    def test_two_of_one_split(self, tree, first, second):
        shutil.copytree(tree / first, tree / second)
        with pytest.raises(ValueError, match=rf"tree/{min(first, second)} and tree/{max(first, second)} are both"):
            ready()

    def test_words_that_only_contain_a_name(self, tree):
        for name in ("test_results", "trained", "invalid", "cross-val"):
            (tree / name).mkdir()
        assert_whole(ready())

    def test_names_that_are_not_ascii(self, tree):
        for split in COUNTS:
            for path in (tree / split / "bee").iterdir():
                path.rename(path.with_name(f"ä ö 日本 #&% {path.name}"))
            (tree / split / "bee").rename(tree / split / "été")
        module = ready()
        assert_whole(module)
        assert module.classes == ["ant", "été"]


class TestUnread:
    @pytest.mark.parametrize("name", ["vaild", "dev", "eval"])
    def test_folder_that_looks_like_a_split(self, tree, name):
        rename(tree, "valid", name)
        with pytest.warns(UserWarning, match=rf"tree/{name} has folders of classes, but is not read.*Rename") as told:
            module = ready()
        assert len(told) == 1
        assert sorted(values(module, "train") + values(module, "val")) == expected("train")

    def test_told_before_the_error(self, tree):
        rename(tree, "test", "tset")
        with (
            pytest.warns(UserWarning, match="tree/tset"),
            pytest.raises(FileNotFoundError, match="no folder tree/test"),
        ):
            made().setup("test")

    @pytest.mark.usefixtures("nothing_said")
    def test_other_folders(self, tree):
        for name in ("checkpoints/best", "notes", ".git/ant", "__MACOSX/ant"):
            (tree / name).mkdir(parents=True)
        assert_whole(ready())


class TestHeldOut:
    @pytest.fixture
    def told(self, monkeypatch):
        lines = []
        monkeypatch.setattr("lightning_znorm.vision.data.image_folder.rank_zero_info", lines.append)
        return lines

    def test_told(self, tree, told):
        shutil.rmtree(tree / "valid")
        ready(val_share=0.3, eval_per_class=1)
        assert told == [
            "tree has no folder `valid`: 6 images of `train` are held out for validation (`val_share`: 0.3 of each"
            " class)."
        ]

    def test_not_told(self, tree, told):
        ready()
        shutil.rmtree(tree / "valid")
        made().setup("test")
        assert told == []

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
    def test_parts_are_disjoint_and_complete(self, tree, seed, share):
        shutil.rmtree(tree / "valid")
        module = ready(val_share=share, seed=seed)
        parts = {name: module._splits[name].samples.files for name in ("train", "val", "test")}
        assert not {*parts["train"]} & {*parts["val"]}
        everything = {path for name in parts for path, _ in parts[name]}
        assert everything == {*tree.rglob("*.png")}
        assert sum(map(len, parts.values())) == len(everything)


@pytest.mark.usefixtures("nothing_said")
class TestSkipped:
    def test_what_macos_and_others_leave(self, tree):
        apple = b"\0\5\x16\7\0\2\0\0Mac OS X"
        for folder in (tree, tree / "train", tree / "train" / "ant", tree / "valid" / "bee"):
            for name in ("._0.png", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
                (folder / name).write_bytes(apple)
            for name in ("__MACOSX", ".ipynb_checkpoints"):
                (folder / name).mkdir()
                (folder / name / "0-checkpoint.png").write_bytes(apple)
        assert_whole(ready())

    def test_root_whose_name_starts_with_a_dot(self, tree):
        Path(".data").mkdir()
        tree.rename(Path(".data") / "tree")
        assert [len(images) for images in Tree(Path(".data") / "tree").images("test")] == [2, 2]

    def test_subfolders_and_endings(self, tree):
        folder = tree / "test" / "ant"
        (folder / "scanner.png").mkdir()
        (folder / "1.png").rename(folder / "scanner.png" / "1.PNG")
        assert_whole(ready())

    def test_loop_of_links(self, tree):
        (tree / "test" / "ant" / "loop").symlink_to(tree.absolute() / "test", target_is_directory=True)
        (tree / "test" / "ant" / "loop.png").symlink_to(tree.absolute(), target_is_directory=True)
        assert_whole(ready())


def test_classes_that_differ_in_case(tree):
    rename(tree / "test", "ant", "Ant")
    with pytest.raises(ValueError, match=r"tree/test/Ant has no counterpart in tree/train"):
        ready()


def test_classes_that_look_alike(tree):
    """An é of one or of two characters."""
    for split in ("train", "valid"):
        rename(tree / split, "ant", "e\u0301")
    rename(tree / "test", "ant", "\u00e9")
    with pytest.raises(ValueError, match="tree/test/\u00e9 has no counterpart in tree/train"):
        ready()
