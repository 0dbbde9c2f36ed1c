"""A table of functions, of all kinds that JAX can differentiate.

`tests/test_functions.py` expands vector fields that are made of them, and
`tools/coverage.py` writes a page of the documentation from their names.
"""

import functools as ft
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.cluster
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree


Function: TypeAlias = Callable[..., PyTree[Any]]
# Makes the argument of a function, or a tuple of them, from an array of four numbers.
Domain: TypeAlias = Callable[[Array], Any]


def real(x):
    return x


class Entry(NamedTuple):
    """Function of the table, with its domain and the order of its expansion.

    - `function`: it may return any pytree.
    - `order`: the order of the highest coefficient that is compared. It is lower if the
        nested `jax.jvp` of the comparison, which grows exponentially, is slow.
    - `reference`: an equal function, where `jax.jvp` can't differentiate this one.
    - `since`: the oldest release of JAX that is known to have the function.
    - `tolerance`: a factor of the tolerance, if rounding errors are amplified.
    - `single`: whether there is an equal function in float32: random draws have none.
    - `strict`: whether JAX's own code for it needs no implicit promotion.
    """

    function: Function
    domain: Domain = real
    order: int = 5
    reference: Function | None = None
    since: tuple[int, ...] = ()
    tolerance: float = 1.0
    single: bool = True
    strict: bool = True

    def applied(self, function: Function, x: Array) -> PyTree[Any]:
        arguments = self.domain(x)
        return function(*arguments) if type(arguments) is tuple else function(arguments)


def on(domain: Domain, functions: dict[str, Function], **options: Any):
    return {name: Entry(f, domain, **options) for name, f in functions.items()}


def named(module: Any, names: str, domain: Domain = real, **options: Any):
    """Makes entries of functions whose only arguments are those of the `domain`."""

    def attribute(name: str) -> Function:
        return lambda *x: getattr(module, name)(*x)

    return on(domain, {name: attribute(name) for name in names.split()}, **options)


def group(*parts: dict[str, Entry]) -> dict[str, Entry]:
    names = [name for part in parts for name in part]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, twice
    return {name: entry for part in parts for name, entry in part.items()}


def variants(name: str, make: Callable[..., Function], options: Iterable[Any]):
    """Makes an entry for each option."""
    return {name.format(option): make(option) for option in options}


# Domains.


def between(low, high):
    """Makes the domain of an open interval."""
    middle, radius = (low + high) / 2, 0.9 * (high - low) / 2
    return lambda x: middle + radius * jnp.sin(x)


positive = between(0.5, 2.5)
above_one = between(1.2, 3.0)
unit = between(0.0, 1.0)
signed_unit = between(-1.0, 1.0)


@jax.custom_jvp
def kink(x):
    """Returns numbers that are exactly zero, but only at order 0."""
    return x - x


kink.defjvp(lambda primals, tangents: (kink(*primals), tangents[0]))


def pair(x):
    return x, jnp.cos(x)


def positives(x):
    return positive(x), positive(jnp.cos(x))


def ratio(x):
    return x, positive(jnp.cos(x))


def power(x):
    return positive(x), x


def signal(x):
    return jnp.concatenate([x, jnp.cos(x)])


def batch(x):
    return jnp.stack([x, jnp.cos(x), x * x])


def batches(x):
    return batch(x), batch(jnp.sin(x))


def images(x):
    """Returns a batch of one image with two channels, 4 by 4."""
    return jnp.stack([jnp.outer(x, jnp.cos(x)), jnp.outer(x, x)])[None]


def square(x):
    """Returns a matrix whose pivots, eigenvalues and singular values are well apart."""
    return jnp.diag(like(x, [1, 2, 3])) + 0.2 * jnp.outer(jnp.sin(x[:3]), x[1:])


def tall(x):
    return jnp.concatenate([square(x), x[None, :3]])


def symmetric(x):
    return square(x) + square(x).T


def definite(x):
    return square(x) @ square(x).T


def system(x):
    return square(x), x[:3]


def definite_system(x):
    return definite(x), x[:3]


def numbers(x):
    """Returns complex numbers."""
    return lax.complex(x, jnp.cos(x))


def number_pair(x):
    return pair(numbers(x))


def number_batch(x):
    return numbers(batch(x))


def complex_square(x):
    return lax.complex(square(x), square(jnp.cos(x)))


def hermitian(x):
    return complex_square(x) + jnp.conj(complex_square(x)).T


# Parts of the functions below.


def like(x, values):
    """Makes a constant of the dtype of `x`."""
    return jnp.asarray(np.asarray(values), x.dtype)


def mixed(x):
    return like(x, WEIGHTS) @ jnp.tanh(x)


def loss(x):
    return jnp.sum(mixed(x) ** 2)


WEIGHTS = np.cos(np.arange(1, 17)).reshape(4, 4)
FILTER = np.sin(np.arange(1, 37)).reshape(2, 2, 3, 3)
NODES = np.arange(4)
TWICE = np.array([2, 0, 0])
ONCE = np.array([2, 0, 3])
OUTSIDE = np.array([1, 9, -2])
MASK = np.array([False, True, True, True])
MESH = ft.partial(jax.make_mesh, (1,), ("i",))
EVERYWHERE = jax.sharding.PartitionSpec()


# Activations.


@jax.custom_jvp
def doubled(x):
    """Function with a custom derivative that is not the one of its value."""
    return jnp.sin(x)


@doubled.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return doubled(x), 2 * jnp.cos(x) * dx


def residual(z, x):
    return 2 * z + jnp.sin(z) - x


def normal(key, like):
    """Draws the same random numbers in all precisions."""
    return jr.normal(key, (), jnp.float32).astype(like.dtype)


def step(c, a):
    return jnp.sin(c * a), c + a


def chain(x):
    return lax.scan(step, x[0], x)


def shrink(c):
    return 0.8 * jnp.sin(c)


def large(c):
    return jnp.sum(c**2) > 0.5


def decay(x):
    """Function with a number of iterations that depends on the state."""
    return lax.while_loop(large, shrink, x)
