"""Many launches of the Triton backend, each with other inputs and in memory that holds plausible numbers.

A program that reads what another one has not written yet, or what the launch before has left, gives a wrong result:
repeated inputs and fresh memory would hide it. Each result is compared with float64 arithmetic, and the wrong ones are
counted, on the device. A backend that is broken on purpose must be noticed.

Run as ``python -m tests.gpu.launches`` on a machine with a GPU.
"""

import argparse
import sys
import time
from contextlib import contextmanager
from unittest import mock

import torch

from lightning_znorm.backends import triton

# a part of a tile, one, several; few and many segments; more programs than a GPU holds at once
SIZES = [(5,), (4096, 4097), (1, 64, 300, 100_000, 7), (1_000_003, 12), (257,) * 40, (4_000_000, 3, 500_001)]
SIZES_IN_THE_INTERPRETER = [(5,), (4096, 4097), (1, 64, 300, 9_000, 7)]
EPS = 1e-10
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


class Poisoned:
    """``torch``, whose new memory holds numbers that could be results."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype, device):
        return torch.empty(*shape, dtype=dtype, device=device).uniform_(0.1, 2.0)


@contextmanager
def poisoned_memory():
    with mock.patch.object(triton, "torch", Poisoned()):
        yield


def znorm_without_waiting_(gradients, eps):
    """Normalize gradients by moments that are still being measured, or never are where there are no streams."""
    work = triton._tabulate(gradients, eps)
    if not gradients[0].is_cuda:
        partials = triton.torch.empty(2, work.tiles, dtype=torch.float64, device="cpu")
        return _finish(work, partials)
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        torch.cuda._sleep(1_000_000)
        partials = triton._measure(work)
    stats = _finish(work, partials)
    here.wait_stream(side)
    return stats


def _finish(work, partials):
    found = triton._conclude(work, partials)
    triton._apply(work, found.edit)
    return found.stats


class Trial:
    """Launches of one backend on a device, with a count of the wrong ones there."""

    def __init__(self, znorm_, device, seed=0):
        self.znorm_, self.device = znorm_, torch.device(device)
        self.done, self._wrong = 0, torch.zeros((), dtype=torch.int64, device=device)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._sizes = SIZES if self.device.type == "cuda" else SIZES_IN_THE_INTERPRETER
        self._dtypes = list(TOLERANCE) if self.device.type == "cuda" else [torch.float32]

    @property
    def wrong(self):
        """The number of wrong launches; waits for the device."""
        return int(self._wrong)

    def launch(self):
        number = self.done
        sizes = self._sizes[number % len(self._sizes)]
        dtype = self._dtypes[number // len(self._sizes) % len(self._dtypes)]
        shift = number % 5  # so that the tiles are aligned in all ways
        flat = torch.empty(shift + sum(sizes), device=self.device).normal_(generator=self._generator)
        flat = flat.add_(number % 3 - 1).mul_(10.0 ** (number % 7 - 3)).to(dtype)
        gradients = list(flat[shift:].split(sizes))
        exact = [gradient.double() for gradient in gradients]
        stats = self.znorm_(gradients, EPS)
        means, stds = (torch.stack(each) for each in zip(*map(_mean_and_std, exact), strict=True))
        expected = [
            (values - mean) / (std + EPS) if values.numel() > 1 else values
            for values, mean, std in zip(exact, means, stds, strict=True)
        ]
        bound = TOLERANCE[dtype]
        checks = [
            _differ(flat[shift:].double(), torch.cat(expected), bound, unit=1.0),
            _differ(stats[0], means, 1e-5, unit=stds),
            _differ(stats[1], stds, 1e-5),
        ]
        self._wrong += torch.stack(checks).any()
        self.done += 1


def _mean_and_std(values):
    return values.mean(), values.std(correction=0)


def _differ(found, expected, bound, unit=1e-30):
    """Return whether any value is wrong, NaN included."""
    return ((found - expected).abs() <= bound * (expected.abs() + unit)).logical_not_().any()


@contextmanager
def beside_streams(device):
    """Yield a function that keeps two other streams busy, with products of matrices and with a trial of its own."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    matrix = torch.randn(2048, 2048, device=device)
    other = Trial(triton.znorm_, device, seed=1)
    torch.cuda.synchronize()

    def keep_busy():
        with torch.cuda.stream(streams[0]):
            torch.mm(matrix, matrix)
        with torch.cuda.stream(streams[1]):
            other.launch()

    yield keep_busy, other
    torch.cuda.synchronize()


def report(name, trial):
    print(f"{name}: {trial.wrong} of {trial.done} launches are wrong", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=50.0, help="to stop after, wherever it is (%(default)s)")
    parser.add_argument("--without-broken", action="store_true", help="leave out the backend that is broken on purpose")
    parser.add_argument("--beside-streams", action="store_true", help="while two other streams are busy")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    with poisoned_memory(), torch.no_grad():
        broken = Trial(znorm_without_waiting_, "cuda")
        for _ in range(0 if options.without_broken else 60):
            broken.launch()
        report("a backend that does not wait between measuring and applying", broken)
        trial = Trial(triton.znorm_, "cuda")
        trials = [trial]
        with beside_streams("cuda") as (keep_busy, other):
            while trial.done < options.launches and time.monotonic() < end:
                if options.beside_streams:
                    keep_busy()
                trial.launch()
                if trial.done % 1000 == 0:
                    report("so far", trial)  # waits, so that not too much is in the queue
        report("in all", trial)
        if options.beside_streams:
            report("on another stream", other)
            trials.append(other)
    if broken.wrong < broken.done / 2:
        sys.exit("The broken backend was not noticed: these launches show nothing.")
    sys.exit(int(any(each.wrong for each in trials)))


if __name__ == "__main__":
    main()
