"""Densities in the plane, whose samples are made as they are needed."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from sklearn.datasets import make_moons


Sampler = Callable[[np.random.Generator, int], Float[np.ndarray, "count 2"]]


def moons(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 2"]:
    """Draws samples from two half circles, one of which reaches into the other."""
    seed = int(rng.integers(2**32))
    points, _ = make_moons(count, noise=0.08, random_state=seed)
    return (2 * (np.asarray(points) - [0.5, 0.25])).astype(np.float32)


def pinwheel(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 2"]:
    """Draws samples from five arms: normal densities on rays that bend outwards."""
    arms = 5
    radius = 1 + 0.3 * rng.standard_normal(count)
    across = 0.05 * rng.standard_normal(count)
    angle = 2 * np.pi * rng.integers(arms, size=count) / arms + 0.25 * np.exp(radius)
    cosine, sine = np.cos(angle), np.sin(angle)
    points = [cosine * radius - sine * across, sine * radius + cosine * across]
    return (2 * np.stack(points, axis=1)).astype(np.float32)
