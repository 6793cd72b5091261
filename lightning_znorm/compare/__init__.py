"""Does a gradient transform help a model? Methods x settings x seeds, with error bars."""

from importlib.util import find_spec

_PACKAGES = ("cloudpickle", "jinja2", "matplotlib", "pandas", "rich", "scipy", "statsmodels", "tabulate")

if _missing := [package for package in _PACKAGES if find_spec(package) is None]:
    raise ModuleNotFoundError(
        f"`lightning_znorm.compare` needs {', '.join(_missing)}, which {'is' if len(_missing) == 1 else 'are'} not"
        ' installed. Install all it needs: `pip install "lightning-znorm[compare]"`.',
        name=_missing[0],
    )

from lightning_znorm.compare.api import compare  # noqa: E402

__all__ = ["compare"]
