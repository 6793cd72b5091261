"""Whether a script protects itself from the processes that import it again."""

import ast
import os
import sys
from types import FrameType
from typing import Any

from lightning_znorm.errors import ComparisonError


def check_main_guard() -> None:
    """Raise if the script that is at work would call this again in each process that imports it.

    Raises:
        ValueError: If the call does not come from below ``if __name__ == "__main__":``.

    """
    frame = _find_script()
    if frame is not None and not _is_guarded(frame.f_code.co_filename, frame.f_lineno):
        raise ComparisonError(
            f"Line {frame.f_lineno} of {frame.f_code.co_filename} calls `compare`, whose processes import that file and"
            ' would call it again. Put the line under `if __name__ == "__main__":`.'
        )


def _find_script() -> FrameType | None:
    """Return the module level of the main script, unless it is none that processes import."""
    main: Any = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if not hasattr(main, "__file__") or name.rpartition(".")[2] == "__main__":
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "<module>" and frame.f_globals is vars(main)):
        frame = frame.f_back
    return frame


def _is_guarded(path: str | os.PathLike[str], line: int) -> bool:
    """Say whether a line lies inside an ``if`` about ``__name__``, or the file cannot be read."""
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
