"""Densities in the plane, whose samples are made as they are needed.

No mean negative log-likelihood is below the entropy of a density.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from sklearn.datasets import make_moons


SCALE, NOISE = 2.0, 0.08
RADIUS_DEVIATION, WIDTH, ARMS = 0.3, 0.05, 5
Sampler = Callable[[np.random.Generator, int], Float[np.ndarray, "count 2"]]


def moons(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 2"]:
    """Draws samples from two half circles, one of which reaches into the other."""
    seed = int(rng.integers(2**32))
    points, _ = make_moons(count, noise=NOISE, random_state=seed)
    return (SCALE * (np.asarray(points) - [0.5, 0.25])).astype(np.float32)


def entropy_of_moons() -> float:
    """Estimates the entropy from samples: they are normal around points of the arcs."""
    deviation, count = SCALE * NOISE, 2000
    samples = moons(np.random.default_rng(0), 4 * count)
    points, _ = make_moons(count)
    centers = SCALE * (np.asarray(points) - [0.5, 0.25])
    squares = np.sum((samples[:, None] - centers) ** 2, axis=-1) / deviation**2
    logs = np.asarray(logsumexp(-squares / 2, axis=1)) - math.log(count)
    return math.log(2 * math.pi * deviation**2) - float(np.mean(logs))


def pinwheel(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 2"]:
    """Draws samples from five arms: normal densities on rays that bend outwards."""
    radius = 1 + RADIUS_DEVIATION * rng.standard_normal(count)
    across = WIDTH * rng.standard_normal(count)
    angle = 2 * np.pi * rng.integers(ARMS, size=count) / ARMS + 0.25 * np.exp(radius)
    cosine, sine = np.cos(angle), np.sin(angle)
    points = [cosine * radius - sine * across, sine * radius + cosine * across]
    return (SCALE * np.stack(points, axis=1)).astype(np.float32)


def entropy_of_pinwheel() -> float:
    """Computes the entropy of arms that do not overlap, which is slightly larger.

    The rotation by an angle that depends on the radius hardly changes areas in an arm.
    """
    area = 2 * math.pi * math.e * SCALE**2 * RADIUS_DEVIATION * WIDTH
    return math.log(ARMS * area)
