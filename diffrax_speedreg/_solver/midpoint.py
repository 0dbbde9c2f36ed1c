import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, DTypeLike, Inexact, Key, PyTree, Shaped

from .._checks import (
    check_callable,
    check_integer,
    check_key,
    check_like_state,
    check_positive_integer,
)
from .._custom_types import Args, RealScalarLike
from .layout import StateLayout


class AbstractMidpoint(eqx.Module):
    r"""Abstract base class for learned midpoints: the offset $\varphi\, h f(t_0, y_0)$
    added to an Euler step.

    Start with [`diffrax_speedreg.MidpointMLP`][], or subclass this class for your own
    network. Let the network start from zero, so that the untrained solver has its full
    order.

    A [`diffrax_speedreg.TaylorLagrangeSolver`][] evaluates its remainder at the
    midpoint. A [`diffrax_speedreg.HyperSolver`][] adds the offset to the result of a
    step.
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
        r"""Computes the offset for a step.

        **Arguments:**

        - `t`: the time at the start of the step, a scalar.
        - `dt`: the length $h$ of the step, a scalar. It is negative in a solve that
            runs backwards.
        - `y`: the state at the start of the step, a pytree of arrays.
        - `dy`: $h f(t_0, y_0)$, a pytree like `y`.
        - `args`: the arguments of the vector field.

        **Returns:**

        The offset, a pytree like `y`. It should be a dimensionless multiple of `dy`, so
        that it vanishes at steady states.
        """


def midpoint_offset(
    midpoint: AbstractMidpoint,
    t0: RealScalarLike,
    t1: RealScalarLike,
    control: PyTree,
    y0: PyTree[Array],
    dy: PyTree[Array],
    args: Args,
) -> PyTree[Array]:
    """Computes the offset for a step, in the direction of time of the user's solve."""
    # Diffrax runs backward solves in negative time.
    backward = jtu.tree_leaves(control)[0] < 0
    direction = jnp.where(backward, -1, 1).astype(jnp.result_type(t0))
    value = midpoint(direction * t0, direction * (t1 - t0), y0, dy, args)
    value = jtu.tree_map(jnp.asarray, value)
    check_like_state(value, y0, "The midpoint", dtypes=False)
    return jtu.tree_map(lambda x, y: x.astype(y.dtype), value, y0)


Form: TypeAlias = Literal["elementwise", "scalar", "matrix"]
Input: TypeAlias = Literal["t", "dt", "y", "dy", "args"]


def _dtype_like(state: Any) -> DTypeLike | None:
    """Returns the dtype of a state, or `None` if only its size is given."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*jtu.tree_leaves(state))
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else None


_SMALL = 8


def _choose_form(form: Form | None, size: int) -> Form:
    if form is None:
        return "matrix" if size <= _SMALL else "elementwise"
    forms = get_args(Form)
    if form not in list(forms):
        raise ValueError(f"`form` must be one of {list(forms)}, but got {form!r}.")
    return form


def _num_factors(form: Form, size: int) -> int:
    """Returns the number of entries of a factor of that form."""
    return dict(elementwise=size, scalar=1, matrix=size**2)[form]


def _multiply(
    form: Form, factors: Inexact[Array, "..."], dy: Inexact[Array, "*batch size"]
) -> Inexact[Array, "*batch size"]:
    factors = jnp.broadcast_to(factors, (*dy.shape[:-1], factors.shape[-1]))
    if form != "matrix":
        return factors * dy
    matrix = factors.reshape(*factors.shape[:-1], dy.shape[-1], dy.shape[-1])
    return jnp.einsum("...ij,...j->...i", matrix, dy)


class MidpointMLP(AbstractMidpoint):
    r"""Midpoint whose $\varphi$ is a multilayer perceptron, with a last layer that
    starts at zero.

    This is the midpoint to start with. The state may be any pytree of arrays. The
    network gets its entries as one vector of size $n$. If the state has leading batch
    axes, the network is applied to each sample.
    """

    mlp: eqx.nn.MLP
    form: Form = eqx.field(static=True)
    inputs: tuple[Input, ...] = eqx.field(static=True)
    layout: StateLayout
    args_layout: StateLayout

    def __init__(
        self,
        state: int | np.integer | PyTree[Array],
        form: Form | None = None,
        inputs: Input | Sequence[Input] = ("t", "dt", "y"),
        width: int = 32,
        depth: int = 2,
        activation: Callable[[Array], Array] = jax.nn.tanh,
        dtype: DTypeLike | None = None,
        *,
        args: PyTree[Array] = None,
        key: Key[Array, ""],
    ):
        r"""**Arguments:**

        - `state`: the state of one sample, a pytree of arrays; or the size of a vector.
        - `form`: the form of $\varphi$. With `"elementwise"` it has one factor for each
            entry of the state, with `"scalar"` one factor for all entries, and with
            `"matrix"` it is an $n \times n$ matrix. By default it is a matrix for
            states of at most 8 entries, where steps are often more accurate by far, and
            elementwise for larger states.
        - `inputs`: the inputs of the network, a tuple of names: the time `"t"` and the
            length `"dt"` of the step, the state `"y"`, the Euler step `"dy"`, and the
            arguments `"args"` of the vector field.
        - `width`: the size of the hidden layers.
        - `depth`: the number of hidden layers.
        - `activation`: the activation of the hidden layers, a function of an array.
        - `dtype`: the dtype of the weights. By default it is that of the state, or
            JAX's default dtype if `state` is a size.
        - `args`: the arguments of the vector field for one sample, a pytree of arrays.
            Pass them if `"args"` is one of the inputs. In a solve they have the same
            leading batch axes as the state, or none.
        - `key`: a `jax.random` key for the initial weights of the hidden layers.

        **Raises:**

        A `ValueError` if `form` or `inputs` has another value.
        """
        self.layout = StateLayout.of_state(state)
        self.args_layout = StateLayout.of(args)
        self.form = _choose_form(form, self.layout.size)
        self.inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs or ())
        size = self.layout.size
        sizes = dict(t=1, dt=1, y=size, dy=size, args=self.args_layout.size)
        if not self.inputs or any(name not in list(sizes) for name in self.inputs):
            raise ValueError(
                f"`inputs` must be some of {list(sizes)}, in a sequence, such as "
                f"`inputs=('t', 'y')`, but got {inputs!r}."
            )
        check_callable(activation, "activation", "x -> y")
        check_positive_integer(width, "width")
        check_integer(depth, "depth", 0)
        check_key(key)
        if "args" in self.inputs and not sizes["args"]:
            raise ValueError(
                "The network sees `args`, but got none to size it by. Pass "
                "`args=...`: the arguments of the vector field for one sample."
            )
        mlp = eqx.nn.MLP(
            sum(sizes[name] for name in self.inputs),
            _num_factors(self.form, size),
            width,
            depth,
            activation=activation,
            dtype=_dtype_like(state) if dtype is None else dtype,
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
        # The weights may have another precision than the state. The offset is cast to
        # that of the state in the end.
        with jax.numpy_dtype_promotion("standard"):
            return self._offset(t, dt, y, dy, args)

    def _offset(
        self,
        t: RealScalarLike,
        dt: RealScalarLike,
        y: PyTree[Array],
        dy: PyTree[Array],
        args: Args,
    ) -> PyTree[Array]:
        state, slope = self.layout.flatten(y), self.layout.flatten(dy)
        batch = state.shape[:-1]

        def broadcast(time: RealScalarLike) -> Array:
            return jnp.broadcast_to(jnp.asarray(time, state.dtype), (*batch, 1))

        features = dict(t=broadcast(t), dt=broadcast(dt), y=state, dy=slope)
        if "args" in self.inputs:
            features["args"] = self._flatten_args(args, batch).astype(state.dtype)
        inputs = jnp.concatenate([features[name] for name in self.inputs], axis=-1)
        flat = inputs.reshape(math.prod(batch), inputs.shape[-1])
        factors = jax.vmap(self.mlp)(flat)
        factors = factors.reshape(*batch, factors.shape[-1])
        return self.layout.unflatten(_multiply(self.form, factors, slope), y)

    def _flatten_args(
        self, args: Args, batch: tuple[int, ...]
    ) -> Shaped[Array, "*batch size"]:
        flat = self.args_layout.flatten(args, "`args`")
        if flat.ndim > 1 and flat.shape[:-1] != batch:
            raise ValueError(
                f"`args` has the leading axes {flat.shape[:-1]}, but the state has "
                f"{batch}. Pass arguments for each sample of the batch, or arguments "
                "without batch axes, which all samples share."
            )
        return jnp.broadcast_to(flat, (*batch, flat.shape[-1]))


class ConstantMidpoint(AbstractMidpoint):
    r"""Midpoint with a constant $\varphi$, which starts from zero.

    Use it for a linear vector field. With a full matrix, a step of any size can be
    exact.
    """

    factors: Inexact[Array, " n"]
    form: Form = eqx.field(static=True)
    layout: StateLayout

    def __init__(
        self,
        state: int | np.integer | PyTree[Array],
        form: Form | None = None,
        dtype: DTypeLike | None = None,
    ):
        """**Arguments:**

        - `state`, `form`, `dtype`: as for [`diffrax_speedreg.MidpointMLP`][].
        """
        self.layout = StateLayout.of_state(state)
        self.form = _choose_form(form, self.layout.size)
        dtype = _dtype_like(state) if dtype is None else dtype
        self.factors = jnp.zeros(_num_factors(self.form, self.layout.size), dtype)

    def __call__(
        self,
        t: RealScalarLike,
        dt: RealScalarLike,
        y: PyTree[Array],
        dy: PyTree[Array],
        args: Args,
    ) -> PyTree[Array]:
        del t, dt, args
        with jax.numpy_dtype_promotion("standard"):
            slope = self.layout.flatten(dy)
            factors = self.factors.astype(slope.dtype)
            return self.layout.unflatten(_multiply(self.form, factors, slope), y)
