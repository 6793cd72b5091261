import os

# xdist fills the cores: one thread for each test and for each process that a test starts
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests that need a GPU are run by themselves

import pytest
import torch


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Each test in a folder of its own, with the same random numbers."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
