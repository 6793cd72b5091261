"""An executor of a Dask cluster that a file of settings can describe."""

import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from contextlib import suppress
from importlib import import_module
from typing import Any

from lightning_znorm.errors import ArgumentValueError, ZNormError, require_count, require_packages

__all__ = ["DaskExecutor"]

_SECONDS_TO_REPLACE = 30.0  # between two looks at the number of workers


class DaskExecutor(futures.Executor):
    """A ``concurrent.futures.Executor`` of a Dask cluster, which it starts and ends: for ``compare(executor=…)``.

    Args:
        cluster: Class path of the cluster that is started, such as ``"dask_jobqueue.SLURMCluster"`` or
            ``"distributed.SSHCluster"``; ``None`` for one that runs already.
        workers: Number of workers that the cluster is asked for, and in whose place others are started when they end,
            as at the time limit of a job; ``None`` leaves it to the options.
        options: Arguments of the cluster; without one, of ``distributed.Client``, such as ``address``.

    Raises:
        MissingPackageError: If Dask is not installed.
        ArgumentValueError: If the cluster cannot be found or started.

    Example::

        >>> from lightning_znorm.compare import DaskExecutor
        >>> options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
        >>> with DaskExecutor("distributed.LocalCluster", options=options) as executor:
        ...     executor.submit(sum, [1, 2]).result()
        3

    """

    def __init__(
        self, cluster: str | None = None, workers: int | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        require_packages("`DaskExecutor`", "cluster", "distributed")
        distributed: Any = import_module("distributed")
        self._workers = None if workers is None else require_count("workers", workers, least=1)
        self._cluster: Any = None
        arguments = dict(options or {})
        try:
            if cluster is not None:
                self._cluster = _find_class(cluster)(**arguments)
                arguments = {"address": self._cluster}
            self._client = distributed.Client(**arguments)
        except Exception as error:
            if self._cluster is not None:
                self._cluster.close()
            if isinstance(error, ZNormError):
                raise
            raise ArgumentValueError(
                f"The Dask cluster `{cluster or arguments}` cannot be started: {type(error).__name__}: {error}"
            ) from error
        self._executor = self._client.get_executor(pure=False, retries=0)
        self._is_closed = threading.Event()
        if workers is not None and self._cluster is not None:
            threading.Thread(target=self._keep_workers, daemon=True).start()

    @property
    def max_workers(self) -> int:
        """Number of calls at a time, once the workers are there."""
        return self._workers or sum(self._client.nthreads().values())

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """Submit a call to the cluster."""
        future: futures.Future[Any] = self._executor.submit(function, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers, if they were started here; what waits is cancelled."""
        self._is_closed.set()
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def _keep_workers(self) -> None:
        """Ask for the number of workers now and then, as a cluster does not replace those that end."""
        while True:
            with suppress(Exception):
                self._cluster.scale(self.max_workers)
            if self._is_closed.wait(_SECONDS_TO_REPLACE):
                return


def _find_class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentValueError(
            f"Argument `cluster`: the class {path!r} cannot be imported: {error}. Those of `dask_jobqueue` come with"
            ' `pip install "lightning-znorm[cluster]"`.'
        ) from None
