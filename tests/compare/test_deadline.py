import signal
import threading
import time

import pytest

from lightning_znorm.compare.deadline import Deadline
from tests.compare.helpers import refusal


@pytest.fixture
def caught(monkeypatch):
    """The signals that arrive, instead of the end of the tests."""
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


def test_without_an_end():
    deadline = Deadline(None)
    with deadline.enforced():
        assert deadline.allows(float("inf"))
    assert not deadline.is_over


def test_what_is_likely_to_end_in_time():
    deadline = Deadline(60)
    assert deadline.allows(1800)
    assert not deadline.allows(3500)  # it may take a tenth longer
    assert not deadline.is_over


def wait_until(caught):
    while not caught:
        time.sleep(0.01)


def test_enforced(caught):
    deadline = Deadline(0.1 / 60)
    with deadline.enforced():
        wait_until(caught)
    assert caught == [signal.SIGTERM]
    assert deadline.is_over
    assert not deadline.allows(0)


def test_not_enforced_after_the_block(caught):
    with Deadline(10).enforced():
        (timer,) = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    timer.join()
    assert caught == []


def test_over_before_it_begins(caught):
    deadline = Deadline(0.01 / 60)
    time.sleep(0.05)
    assert deadline.is_over
    with deadline.enforced():
        wait_until(caught)
    assert caught == [signal.SIGTERM]


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), True])
def test_refused(minutes):
    with pytest.raises(ValueError, match="`minutes` to be a positive number"):
        Deadline(minutes)


def test_refused_on_the_command_line(capsys):
    assert "`minutes` to be a positive number, but got -1" in refusal(capsys, "--compare.minutes=-1")
