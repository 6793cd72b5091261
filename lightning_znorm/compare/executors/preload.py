"""Imported by the process from which the runs are forked: brings in what they need."""

import contextlib
import importlib
import os

import lightning_znorm.compare.executors.worker  # noqa: F401
from lightning_znorm.compare.identity.provenance import find_provenance

find_provenance()  # of the code that has just been imported: the runs are forked with it

for _name in filter(None, os.environ.get("LIGHTNING_ZNORM_PRELOAD", "").split(",")):
    with contextlib.suppress(Exception):  # the run that needs it says what is wrong
        importlib.import_module(_name)
