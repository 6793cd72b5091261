import os

import pytest
import torch

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests that need a GPU are run by themselves


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Each test in a folder of its own, with the same random numbers and one thread (xdist fills the cores)."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
