"""Which code of this package made a run: with real repositories of git, real installations, real comparisons."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lightning_znorm
from lightning_znorm.compare import compare
from lightning_znorm.compare.identity import provenance
from lightning_znorm.compare.identity.provenance import Provenance, find_provenance
from tests.compare.helpers import NEW, ROOT, read_results
from tests.compare.tiny import TinyData, TinyModel

VERSION = lightning_znorm.__version__
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def _own_git(monkeypatch, tmp_path):
    """Without the user's settings, and with no repository above the folder of the test."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.org")
    find_provenance.cache_clear()
    yield
    find_provenance.cache_clear()


def copy_package(folder):
    """Copy this package into a folder, and return where it is."""
    copied = folder / "lightning_znorm"
    shutil.copytree(ROOT / "lightning_znorm", copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def git(folder, *arguments):
    done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder, *paths):
    """Commit files, all by default, to the repository of a folder, which is made if need be."""
    git(folder, "init", "--quiet")
    git(folder, "add", *(paths or ["--all"]))
    git(folder, "commit", "--quiet", "--message=A change")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path):
    """A checkout of this package with one commit."""
    folder = tmp_path / "project"
    copy_package(folder)
    (folder / ".gitignore").write_text("__pycache__/\n")
    (folder / "README.md").write_text("About it.\n")
    commit(folder)
    return folder


@pytest.fixture
def ask(monkeypatch, capfd, recwarn):
    """Ask a package in some folder, and see to it that nothing is printed."""

    def asked(package):
        find_provenance.cache_clear()
        monkeypatch.setattr(provenance, "_FOLDER", package.resolve())
        found = find_provenance()
        assert capfd.readouterr() == ("", "")
        assert not recwarn
        return found

    return asked


def test_version_is_that_of_the_installed_package():
    assert find_provenance().version == version("lightning-znorm")


@needs_git
def test_commit_of_a_clean_checkout(checkout, ask):
    package = checkout / "lightning_znorm"
    first = git(checkout, "rev-parse", "HEAD")
    assert ask(package) == (VERSION, first, False)
    (checkout / "README.md").write_text("More about it.\n")  # no file of the package
    (checkout / "notes.txt").write_text("")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "callbacks.pyc").write_text("")
    assert ask(package) == (VERSION, first, False)
    second = commit(checkout)
    assert second != first
    assert ask(package) == (VERSION, second, False)


@needs_git
@pytest.mark.parametrize("change", ["changed", "staged", "new", "deleted"])
def test_dirty_checkout(checkout, ask, change):
    package = checkout / "lightning_znorm"
    git(checkout, "config", "status.showUntrackedFiles", "no")
    if change == "deleted":
        (package / "callbacks.py").unlink()
    else:
        (package / "vision" / ("other.py" if change == "new" else "__init__.py")).write_text("# something else\n")
    if change == "staged":
        git(checkout, "add", "--all")
    assert ask(package) == (VERSION, git(checkout, "rev-parse", "HEAD"), True)


@needs_git
def test_checkout_is_left_as_it_is(checkout, ask):
    """git would refresh its index, which stands in the way of whoever commits at the same time."""
    index = checkout / ".git" / "index"
    (checkout / "lightning_znorm" / "callbacks.py").touch()
    (checkout / ".git" / "index.lock").touch()
    before = index.read_bytes()
    assert ask(checkout / "lightning_znorm").dirty is False
    assert index.read_bytes() == before


@needs_git
def test_repository_of_a_hook_is_not_asked(checkout, ask, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("")
    assert commit(other) != git(checkout, "rev-parse", "HEAD")
    expected = ask(checkout / "lightning_znorm")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert ask(checkout / "lightning_znorm") == expected


@needs_git
@pytest.mark.parametrize("is_ignored", [True, False])
def test_environment_inside_a_foreign_repository(tmp_path, ask, is_ignored):
    package = copy_package(tmp_path / "mine" / ".venv")
    (tmp_path / "mine" / "train.py").write_text("")
    if is_ignored:
        (tmp_path / "mine" / ".gitignore").write_text(".venv/\n")
    commit(tmp_path / "mine", *(["--all"] if is_ignored else ["train.py"]))
    assert ask(package) == (VERSION, None, None)


@needs_git
def test_repository_without_a_commit(tmp_path, ask):
    package = copy_package(tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    assert ask(package) == (VERSION, None, None)


def test_outside_of_any_repository(tmp_path, ask):
    assert ask(copy_package(tmp_path)) == (VERSION, None, None)
    assert ask(tmp_path / "package.zip" / "lightning_znorm") == (VERSION, None, None)


@needs_git
def test_repository_of_somebody_else(checkout, ask, monkeypatch):
    """git refuses to work in it: "detected dubious ownership"."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "dubious" in subprocess.run(["git", "-C", checkout, "status"], capture_output=True, text=True).stderr
    assert ask(checkout / "lightning_znorm") == (VERSION, None, None)


@needs_git
def test_without_git(checkout, ask, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert ask(checkout / "lightning_znorm") == (VERSION, None, None)


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
def test_git_that_hangs(tmp_path, ask, monkeypatch):
    script = tmp_path / "bin" / "git"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexec sleep 100\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    monkeypatch.setattr(provenance, "_GIT_TIMEOUT", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        provenance._run_git(tmp_path, "status")
    assert ask(tmp_path) == (VERSION, None, None)


@pytest.mark.parametrize("origin", ["git", "archive", "editable", "index", "damaged"])
def test_installed_by_pip(tmp_path, ask, monkeypatch, origin):
    """`pip install git+https://…` notes the commit in `direct_url.json` (PEP 610)."""
    package = copy_package(tmp_path / "site-packages")
    about = package.with_name(f"lightning_znorm-{VERSION}.dist-info")
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lightning-znorm\nVersion: {VERSION}\n")
    direct_url = {
        "git": {"url": "https://example.org/z.git", "vcs_info": {"vcs": "git", "commit_id": NEW}},
        "archive": {"url": "https://example.org/z.zip", "archive_info": {}},
        "editable": {"url": "file:///home/me/z", "dir_info": {"editable": True}},
    }
    if origin != "index":
        (about / "direct_url.json").write_text(json.dumps(direct_url.get(origin, [])))
    monkeypatch.syspath_prepend(str(package.parent))
    assert ask(package) == (VERSION, NEW if origin == "git" else None, None)
    # another copy than the installed one, that comes first on the path
    assert ask(copy_package(tmp_path / "copy")) == (VERSION, None, None)


@pytest.mark.slow
def test_frame_and_files_of_a_comparison():
    quick = {"max_epochs": 1, "accelerator": "cpu"}
    arguments = {"monitor": "val_acc", "trainer": quick, "jobs": 2, "out": "out", "sweep": None}
    frame = compare(TinyModel, TinyData, "znorm", confirm=2, **arguments)
    here = find_provenance()
    assert frame.attrs["provenance"] == [{"version": here.version, "commit": here.commit, "dirty": here.dirty}]
    results = read_results("out")
    assert len(results) == 2
    assert {(each["versions"]["lightning-znorm"], each["commit"], each["dirty"]) for each in results.values()} == {here}
    assert f"- lightning-znorm: {here}\n" in Path("out/summary.md").read_text()


SCRIPT = """
import subprocess, sys
from lightning_znorm.compare import compare
from tests.compare.tiny import TinyData, TinyModel

if __name__ == "__main__":
    checkout, *numbers = sys.argv[1:]
    for count in map(int, numbers):
        if count == 2:
            with open(f"{checkout}/lightning_znorm/callbacks.py", "a") as file:
                file.write("# another commit")
            subprocess.run(["git", "-C", checkout, "commit", "--quiet", "--all", "--message=Another"], check=True)
        compare(
            TinyModel, TinyData, "none", sweep=None, confirm=count, monitor="val_acc", out="out", jobs=1,
            trainer={"max_epochs": 1, "accelerator": "cpu"},
        )
"""


@needs_git
@pytest.mark.long
def test_resumed_with_other_code(checkout):
    """Of a checkout that is not the installed package: each run has the commit of the code that it ran."""
    Path("script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{ROOT}"}

    def run(*counts):
        command = [sys.executable, "script.py", checkout, *map(str, counts)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results = read_results("out").values()
        return {(each["seed"], each["commit"], each["dirty"]) for each in results}, Path("out/summary.md").read_text()

    first = git(checkout, "rev-parse", "HEAD")
    runs, summary = run(1, 2)
    second = git(checkout, "rev-parse", "HEAD")
    assert second != first
    assert runs == {(3, first, False), (4, first, False)}  # what a process has imported stays what it was
    assert "different versions or commits" not in summary
    (checkout / "lightning_znorm" / "new.py").write_text("")
    runs, summary = run(3)
    assert runs == {(3, first, False), (4, first, False), (5, second, True)}
    before, after = Provenance(VERSION, first, False), Provenance(VERSION, second, True)
    assert f"The runs were made by different versions or commits of this package ({before}; {after})" in summary
