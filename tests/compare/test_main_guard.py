"""Scripts that call `compare` with and without `if __name__ == "__main__":`."""

import runpy
import sys
from pathlib import Path

import pytest

from tests import warm

IMPORT = "from lightning_znorm.compare.main_guard import check_main_guard\n"
FUNCTION = IMPORT + "def run():\n    check_main_guard()\n"


def run_as_main(source, name="script.py"):
    Path(name).write_text(source)
    runpy.run_path(name, run_name="__main__")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (f"{IMPORT}check_main_guard()", 2),
        (f"{FUNCTION}run()", 4),
        (f"{FUNCTION}if run:\n    run()", 5),
        (f"{FUNCTION}if __name__ == '__main__':\n    pass\nrun()", 6),
        (f"{FUNCTION}for _ in range(1):\n    run(\n    )", 5),
        ("name = __name__\nimport imported", 2),
    ],
)
def test_a_script_without_the_guard(monkeypatch, source, line):
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "imported", raising=False)
    Path("imported.py").write_text(f"{IMPORT}check_main_guard()")
    with pytest.raises(ValueError, match=rf'^Line {line} of .*script\.py calls.* `if __name__ == "__main__":`\.$'):
        run_as_main(source)


@pytest.mark.parametrize(
    "source",
    [
        f"{IMPORT}if __name__ == '__main__':\n    check_main_guard()",
        f"{IMPORT}if '__main__' == __name__ and True:\n    for _ in range(1):\n        check_main_guard()",
        f"{IMPORT}if __name__ != '__main__':\n    pass\nelse:\n    check_main_guard()",
        f"{FUNCTION}if __name__ == '__main__':\n    run()",
        f"{IMPORT}import pathlib\npathlib.Path('script.py').unlink()\ncheck_main_guard()",
        f"{IMPORT}import pathlib\npathlib.Path('script.py').write_text('a = =')\ncheck_main_guard()",
    ],
)
def test_a_script_that_may_call_it(source):
    run_as_main(source)


def test_compare_asks_before_anything_else():
    call = "compare(None, methods='nonsense', out='out')"
    with pytest.raises(ValueError, match="under `if __name__"):
        run_as_main(f"from lightning_znorm.compare import compare\n{call}")
    with pytest.raises(ValueError, match="nonsense"):
        run_as_main(f"from lightning_znorm.compare import compare\nif __name__ == '__main__':\n    {call}")
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-c", f"{IMPORT}check_main_guard()"], ["-m", "package"]])
def test_what_no_process_imports(how):
    Path("package").mkdir()
    Path("package/__main__.py").write_text(f"{IMPORT}check_main_guard()")
    done = warm.run(*how)
    assert done.returncode == 0, done.stderr
