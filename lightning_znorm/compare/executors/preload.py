"""Imported by the fork server, so that runs find these modules imported."""

import contextlib
import importlib

from lightning_znorm.fork_server import end_with_command, find_modules

end_with_command()  # before the imports that take long

import lightning_znorm.compare.executors.worker  # noqa: E402, F401
from lightning_znorm.compare.identity.provenance import find_provenance  # noqa: E402

find_provenance()  # of the code with which runs are forked

for _name in find_modules():
    with contextlib.suppress(Exception):  # the run that needs it reports the error
        importlib.import_module(_name)
