"""The harness of `make gpu-check` that counts wrong launches, in the interpreter: it can fail."""

import torch

from lightning_znorm.backends import triton
from tests.gpu.launches import Trial, poisoned_memory, znorm_without_waiting_


def wrong_launches(znorm_, count=4):
    trial = Trial(znorm_, "cpu")
    with poisoned_memory():
        for _ in range(count):
            trial.launch()
    assert trial.done == count
    return trial.wrong


def test_right_launches_are_right():
    assert wrong_launches(triton.znorm_) == 0


def test_a_backend_that_does_not_wait_is_noticed():
    assert wrong_launches(znorm_without_waiting_) == 4


def test_one_wrong_element_is_noticed():
    def almost(gradients, eps):
        stats = triton.znorm_(gradients, eps)
        gradients[-1][-1] += 1e-3
        return stats

    assert wrong_launches(almost) == 4


def test_an_unwritten_element_is_noticed():
    def partly(gradients, eps):
        last = gradients[-1][-1].clone()
        stats = triton.znorm_(gradients, eps)
        gradients[-1][-1] = torch.where(last == 0, last + 1, last)
        return stats

    assert wrong_launches(partly) == 4
