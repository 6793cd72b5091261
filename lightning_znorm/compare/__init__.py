"""Does a gradient transform help a model? Methods x settings x seeds, with error bars."""

from lightning_znorm.errors import require_packages

require_packages(
    "`lightning_znorm.compare`",
    "compare",
    *("cloudpickle", "filelock", "jinja2", "matplotlib", "pandas", "rich", "scipy", "statsmodels", "tabulate"),
)

from lightning_znorm.compare.api import compare  # noqa: E402
from lightning_znorm.compare.executors.dask import DaskExecutor  # noqa: E402

__all__ = ["DaskExecutor", "compare"]
