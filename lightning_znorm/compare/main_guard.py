"""Whether a script guards its calls against the processes that import it."""

import ast
import os
import sys
from types import FrameType
from typing import Any

from lightning_znorm.errors import ComparisonError


def check_main_guard() -> None:
    """Raise ``ValueError`` if a script calls this outside of ``if __name__ == "__main__":``."""
    frame = _find_script()
    if frame is not None and not _is_guarded(frame.f_code.co_filename, frame.f_lineno):
        raise ComparisonError(
            f"Line {frame.f_lineno} of {frame.f_code.co_filename} calls `compare`, whose processes import that file and"
            ' would call it again. Move the call under `if __name__ == "__main__":`.'
        )


def _find_script() -> FrameType | None:
    """Return the module-level frame of the main script, if processes import it."""
    main: Any = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if not hasattr(main, "__file__") or name.rpartition(".")[2] == "__main__":
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "<module>" and frame.f_globals is vars(main)):
        frame = frame.f_back
    return frame


def _is_guarded(path: str | os.PathLike[str], line: int) -> bool:
    """Return whether a line is inside an ``if`` about ``__name__``; also if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return True
    return any(
        node.lineno <= line <= (node.end_lineno or line)
        and any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test))
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
    )
