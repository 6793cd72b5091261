"""Imported by the fork server, so that runs find these modules imported."""

import contextlib
import importlib
import os

import lightning_znorm.compare.executors.worker  # noqa: F401
from lightning_znorm.compare.identity.provenance import find_provenance

find_provenance()  # of the code with which runs are forked

for _name in filter(None, os.environ.get("LIGHTNING_ZNORM_PRELOAD", "").split(",")):
    with contextlib.suppress(Exception):  # the run that needs it reports the error
        importlib.import_module(_name)
