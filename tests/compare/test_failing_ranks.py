"""A rank that fails or is killed: the run ends with its error, and no other rank waits for it."""

import os
import signal
import time
from pathlib import Path

import pytest

from lightning_znorm.compare import compare
from lightning_znorm.compare.executors import run_process
from lightning_znorm.errors import ComparisonError
from tests.compare.helpers import read_results
from tests.compare.ranks import ASKED, TWO, assert_gone, train
from tests.compare.tiny import TinyData, TinyModel


class Failing(TinyModel):
    """Does something on one rank in the second epoch, for which others wait."""

    act, rank = "raise", 1

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and self.rank in (self.trainer.global_rank, None):
            print("last words of", self.trainer.global_rank, flush=True)
            if self.act == "raise":
                raise RuntimeError("out of luck")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class Killed(Failing):
    act = "kill"


class KilledFirst(Failing):
    act, rank = "kill", 0


class AllFailing(Failing):
    rank = None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "expected", "log"),
    [
        (Failing, "Rank 1: RuntimeError: out of luck", ""),
        (AllFailing, "RuntimeError: out of luck", ""),
        (Killed, "Rank 1: The process ended by signal 9, without a result.", "last words of 1"),
        (KilledFirst, "The process ended by signal 9, without a result.", "last words of 0"),
    ],
    ids=["raises", "all raise", "killed", "rank 0 is killed"],
)
def test_a_rank_that_fails(model, expected, log):
    began = time.monotonic()
    result = train(model, TWO)
    assert result.status == "crashed"
    assert result.error.startswith(expected)
    assert log in result.error
    assert time.monotonic() - began < run_process._GRACE_SECONDS + 20
    assert not Path("runs/0/result.json").exists(), "it is the comparison that writes the error of the first rank"


@pytest.mark.slow
def test_a_rank_that_fails_in_a_trial():
    message = r"(?s)The trial of method `none` failed: Rank 1: RuntimeError: out of luck\n.*raise RuntimeError"
    with pytest.raises(ComparisonError, match=message):
        compare(Failing, TinyData, trainer=TWO, **ASKED)


class FailingLater(Failing):
    """Not in the trial."""

    def training_step(self, batch, batch_idx):
        return TinyModel.training_step(self, batch, batch_idx) if batch_idx < 2 else super().training_step(batch, 2)


@pytest.mark.long
def test_a_rank_that_fails_in_a_comparison():
    frame = compare(FailingLater, TinyData, trainer=TWO, **ASKED)
    assert frame["crashed"].tolist() == [1]
    (result,) = read_results("out").values()
    assert (result["status"], result["error"]) == ("crashed", "Rank 1: RuntimeError: out of luck")


class Waiting(TinyModel):
    """Rank 1 fails, for which rank 0 would wait for ever."""

    def training_step(self, batch, batch_idx):
        Path(f"pid{self.trainer.global_rank}").write_text(str(os.getpid()))
        if self.trainer.global_rank == 1:
            raise RuntimeError("out of luck")
        signal.pause()


@pytest.mark.slow
def test_a_rank_that_waits_for_one_that_has_failed_is_killed(monkeypatch):
    monkeypatch.setattr(run_process, "_GRACE_SECONDS", 1.0)
    result = train(Waiting, TWO)
    assert (result.status, result.error, result.rank) == ("crashed", "Rank 1: RuntimeError: out of luck", 1)
    assert_gone()
    assert not Path("runs/0/result.json").exists()
