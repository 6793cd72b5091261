"""Tests of this folder that ask for `znorm_` are given that of each backend in turn."""

import pytest
import torch

from lightning_znorm.backends import generic
from tests.backends.helpers import BACKENDS

# Triton's interpreter is slow: but for one short test, it is left to `make test-all`
PARAMS = [
    pytest.param(name, marks=[] if name != "triton" or torch.cuda.is_available() else [pytest.mark.long])
    for name in BACKENDS
]


@pytest.fixture(params=PARAMS, name="znorm_")
def backend(request, monkeypatch):
    if request.param == "float32 alone":
        monkeypatch.setattr(generic, "widest_dtype", lambda device: torch.float32)
    return BACKENDS[request.param]
