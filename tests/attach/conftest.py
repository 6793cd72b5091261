"""Handles warn when they go away; they do so here, and not in a test of something else."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def _handles_go_away():
    yield
    gc.collect()
