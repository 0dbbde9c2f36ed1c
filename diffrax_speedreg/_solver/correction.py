import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, DTypeLike, Inexact, Key, PyTree

from .._checks import as_state
from .._custom_types import Args, RealScalarLike


class AbstractCorrection(eqx.Module):
    r"""What a solver learns: a correction $\varphi\, h f(t_0, y_0)$ of Euler's step.

    A [`diffrax_speedreg.TaylorLagrangeSolver`][] finds the midpoint of its remainder by
    it, and a [`diffrax_speedreg.HyperSolver`][] corrects the result of a step.

    Subclass it for a network of your own, which starts from zero, best: uncorrected,
    both methods have the order that theory gives them.
    """

    @abc.abstractmethod
    def __call__(
        self,
        t: RealScalarLike,
        dt: RealScalarLike,
        y: PyTree[Array],
        dy: PyTree[Array],
        args: Args,
    ) -> PyTree[Array]:
        r"""Computes the correction for a step.

        **Arguments:**

        - `t`, `dt`: the time at the start of the step, and its length, which is
            negative for a solve that runs backwards.
        - `y`: the state at the start of the step.
        - `dy`: $h f(t_0, y_0)$, like `y`.
        - `args`: the arguments of the vector field.

        **Returns:**

        The correction, like `y` and in its units. It should be a multiple of `dy` by
        something dimensionless, so that it vanishes where the solution is at rest.
        """


Form: TypeAlias = Literal["elementwise", "scalar", "matrix"]
Input: TypeAlias = Literal["t", "dt", "y", "dy"]


class _Layout(eqx.Module):
    """How a state, which may have batch axes in front, becomes vectors.

    The same for all samples of a batch is what a network should be: it is applied to
    each of them.
    """

    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, sample: PyTree[Any]) -> "_Layout":
        leaves, structure = jtu.tree_flatten(as_state(sample))
        return cls(structure, tuple(leaf.shape for leaf in leaves))

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, y: PyTree[Array]) -> Inexact[Array, "*batch size"]:
        leaves, structure = jtu.tree_flatten(y)
        axes = [x.ndim - len(shape) for x, shape in zip(leaves, self.shapes)]
        fits = structure == self.structure and all(
            n >= 0
            and x.shape[n:] == shape
            and x.shape[:n] == leaves[0].shape[: axes[0]]
            for n, x, shape in zip(axes, leaves, self.shapes)
        )
        if not fits:
            wanted = jtu.tree_unflatten(self.structure, self.shapes)
            raise ValueError(
                f"The correction was made for states of shapes {wanted}, with batch "
                f"axes in front of these or without, but got {eqx.tree_pformat(y)}. "
                "Make it with a state like the solve's."
            )
        batch = leaves[0].shape[: axes[0]]
        dtype = jnp.result_type(*leaves)
        flat = [x.reshape(*batch, -1).astype(dtype) for x in leaves]
        return jnp.concatenate(flat, axis=-1)

    def unflatten(
        self, flat: Inexact[Array, "*batch size"], like: PyTree[Array]
    ) -> PyTree[Array]:
        leaves = jtu.tree_leaves(like)
        ends = [math.prod(shape) for shape in self.shapes]
        ends = [sum(ends[: i + 1]) for i in range(len(ends) - 1)]
        parts = jnp.split(flat, ends, axis=-1)
        reshaped = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves)]
        return jtu.tree_unflatten(self.structure, reshaped)


def _num_factors(form: Form, size: int) -> int:
    """How many numbers a factor of that form has."""
    forms = dict(elementwise=size, scalar=1, matrix=size**2)
    if form not in forms:
        raise ValueError(f"`form` must be one of {list(forms)}, but got {form!r}.")
    return forms[form]


def _multiply(
    form: Form, factors: Inexact[Array, "..."], dy: Inexact[Array, "*batch size"]
) -> Inexact[Array, "*batch size"]:
    factors = jnp.broadcast_to(factors, (*dy.shape[:-1], factors.shape[-1]))
    if form != "matrix":
        return factors * dy
    matrix = factors.reshape(*factors.shape[:-1], dy.shape[-1], dy.shape[-1])
    return jnp.einsum("...ij,...j->...i", matrix, dy)


class CorrectionMLP(AbstractCorrection):
    r"""A multilayer perceptron for $\varphi$.

    Its last layer starts at zero, and with it the correction.

    A state may be any pytree of arrays, whose entries it sees as one vector of size
    $n$. Batch axes in front of those that it was made for are allowed: it is applied to
    each sample.
    """

    mlp: eqx.nn.MLP
    form: Form = eqx.field(static=True)
    inputs: tuple[Input, ...] = eqx.field(static=True)
    layout: _Layout

    def __init__(
        self,
        state: int | PyTree[Array],
        form: Form = "elementwise",
        inputs: Sequence[Input] = ("t", "dt", "y"),
        width: int = 32,
        depth: int = 1,
        activation: Callable[[Array], Array] = jax.nn.tanh,
        dtype: DTypeLike | None = None,
        *,
        key: Key[Array, ""],
    ):
        r"""**Arguments:**

        - `state`: the state of one sample; or its size, for one that is a vector.
        - `form`: whether $\varphi$ has a factor for each entry of the state
            (`"elementwise"`), one for all of them (`"scalar"`), or is a full
            (`"matrix"`), with $n^2$ outputs of the network.
        - `inputs`: what the network sees: some of the time `"t"` and the length `"dt"`
            of the step, the state `"y"`, and $h f(t_0, y_0)$, `"dy"`.
        - `width`, `depth`: the size and the number of the hidden layers.
        - `activation`: of the hidden layers.
        - `dtype`: of the weights; that of the state, best. By default, JAX's.
        - `key`: a `jax.random.key` for the initial weights of the hidden layers.

        A `ValueError` is raised for anything else.
        """
        self.layout = _Layout.of(jnp.zeros(state) if isinstance(state, int) else state)
        self.form = form
        self.inputs = tuple(inputs)
        size = self.layout.size
        sizes = dict(t=1, dt=1, y=size, dy=size)
        if not self.inputs or not set(self.inputs) <= set(sizes):
            raise ValueError(
                f"`inputs` must be some of {list(sizes)}, but got {inputs!r}."
            )
        mlp = eqx.nn.MLP(
            sum(sizes[name] for name in self.inputs),
            _num_factors(form, size),
            width,
            depth,
            activation=activation,
            dtype=dtype,
            key=key,
        )
        self.mlp = eqx.tree_at(
            lambda m: (m.layers[-1].weight, m.layers[-1].bias),
            mlp,
            replace_fn=jnp.zeros_like,
        )

    def __call__(
        self,
        t: RealScalarLike,
        dt: RealScalarLike,
        y: PyTree[Array],
        dy: PyTree[Array],
        args: Args,
    ) -> PyTree[Array]:
        del args
        state, slope = self.layout.flatten(y), self.layout.flatten(dy)
        batch = state.shape[:-1]

        def broadcast(time: RealScalarLike) -> Array:
            return jnp.broadcast_to(jnp.asarray(time, state.dtype), (*batch, 1))

        features = dict(t=broadcast(t), dt=broadcast(dt), y=state, dy=slope)
        inputs = jnp.concatenate([features[name] for name in self.inputs], axis=-1)
        factors = jax.vmap(self.mlp)(inputs.reshape(-1, inputs.shape[-1]))
        factors = factors.reshape(*batch, -1)
        return self.layout.unflatten(_multiply(self.form, factors, slope), y)


class ConstantCorrection(AbstractCorrection):
    r"""A constant $\varphi$, which starts from zero.

    All that a linear vector field needs: with `form="matrix"`, a single step of any
    size can be exact.
    """

    factors: Inexact[Array, " n"]
    form: Form = eqx.field(static=True)
    layout: _Layout

    def __init__(
        self,
        state: int | PyTree[Array],
        form: Form = "elementwise",
        dtype: DTypeLike | None = None,
    ):
        """**Arguments:**

        - `state`, `form`, `dtype`: as for [`diffrax_speedreg.CorrectionMLP`][].
        """
        self.layout = _Layout.of(jnp.zeros(state) if isinstance(state, int) else state)
        self.form = form
        self.factors = jnp.zeros(_num_factors(form, self.layout.size), dtype)

    def __call__(
        self,
        t: RealScalarLike,
        dt: RealScalarLike,
        y: PyTree[Array],
        dy: PyTree[Array],
        args: Args,
    ) -> PyTree[Array]:
        del t, dt, args
        slope = self.layout.flatten(dy)
        factors = self.factors.astype(slope.dtype)
        return self.layout.unflatten(_multiply(self.form, factors, slope), y)
