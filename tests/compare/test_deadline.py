import math
import time

import pytest

from lightning_znorm.compare.executors.deadline import Deadline, TimeUpError
from tests.compare.helpers import refusal


def test_without_an_end():
    deadline = Deadline()
    assert deadline.allows(math.inf)
    assert deadline.seconds_left == math.inf
    deadline.check()


def test_what_is_likely_to_end_in_time():
    deadline = Deadline(60)
    assert deadline.allows(1800)
    assert not deadline.allows(3500)  # it may take a tenth longer
    assert 3500 < deadline.seconds_left <= 3600
    deadline.check()


def test_over():
    deadline = Deadline(0.01 / 60)
    time.sleep(0.05)
    assert deadline.seconds_left == 0
    assert not deadline.allows(0)
    with pytest.raises(TimeUpError):
        deadline.check()


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), True])
def test_refused(minutes):
    with pytest.raises(ValueError, match="`minutes` to be a positive number"):
        Deadline(minutes)


def test_refused_on_the_command_line(capsys):
    assert "`minutes` to be a positive number, but got -1" in refusal(capsys, "--compare.minutes=-1")
