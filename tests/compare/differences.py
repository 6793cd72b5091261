"""Paired differences, for the tests of their analysis."""

import math

import numpy as np

INFINITE = (-math.inf, math.inf)


def draw(pairs, seed=0, shift=0.5):
    return np.random.default_rng(seed).normal(shift, 1.0, pairs)
