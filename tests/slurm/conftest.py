import os
from unittest import mock

import pytest

from tests.slurm.node import find_obstacle, install_if_missing, start_node


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """SLURM with one node; its programs find it by the environment, which is returned."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    install_if_missing()
    with start_node(tmp_path_factory.mktemp("slurm")) as environment, mock.patch.dict(os.environ, environment):
        yield environment
