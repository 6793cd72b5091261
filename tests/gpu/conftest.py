"""The tests of this folder need a GPU: `make gpu-check` runs them where there is one."""

from pathlib import Path

import pytest
import torch

from lightning_znorm.backends import choice, describing, generic, triton
from lightning_znorm.functional import plain


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU: make gpu-check"))


@pytest.fixture(params=[generic, triton], ids=["generic", "triton"], name="backend")
def backend_of_cuda(request, monkeypatch):
    """Both backends in turn; the package chooses this one for CUDA while a test runs."""
    of_cuda = choice.GENERIC if request.param is generic else choice.load_triton()
    for module in (plain, describing):
        monkeypatch.setattr(module, "choose", lambda gradients: of_cuda if gradients[0].is_cuda else choice.CPU)
    return request.param
