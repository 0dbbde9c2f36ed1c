import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Key, PyTree

from .._checks import check_positive_integer
from .._custom_types import Args, RealScalarLike


class AbstractMidpoint(eqx.Module):
    r"""Where a [`diffrax_speedreg.TaylorLagrangeSolver`][] takes the remainder of its
    Taylor polynomial of degree $p$ over a step of size $h$:

    $$\Gamma = y_0 + \theta\, (1 + \varphi) \odot h f(t_0, y_0),
    \qquad \theta = \frac{1}{p + 1}.$$

    A subclass computes $\varphi$. With $\varphi = 0$ the solver is of order $p + 1$, so
    that a network should start from there.
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
        r"""Computes $\varphi$.

        **Arguments:**

        - `t`, `dt`: the time at the start of the step, and its length, which is
            negative for a solve that runs backwards.
        - `y`: the state at the start of the step.
        - `dy`: $h f(t_0, y_0)$, like `y`.
        - `args`: the arguments of the vector field.

        **Returns:**

        $\varphi$, a pytree like `y`; dimensionless.
        """


class MidpointMLP(AbstractMidpoint):
    r"""A multilayer perceptron for $\varphi$, elementwise in the state.

    It sees the time, the size of the step, and the state: an array whose last axis has
    size `state_size`. Other axes are batch axes. Its last layer starts at zero, and so
    $\varphi = 0$ before training.
    """

    mlp: eqx.nn.MLP
    state_size: int = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        width: int = 32,
        depth: int = 1,
        activation: Callable[[Array], Array] = jax.nn.tanh,
        dtype: DTypeLike | None = None,
        *,
        key: Key[Array, ""],
    ):
        """**Arguments:**

        - `state_size`: the size of the last axis of the state.
        - `width`, `depth`: the size and the number of the hidden layers.
        - `activation`: of the hidden layers.
        - `dtype`: of the weights; that of the state, best. By default, JAX's.
        - `key`: a `jax.random.key` for the initial weights of the hidden layers.
        """
        self.state_size = check_positive_integer(state_size, "state_size")
        mlp = eqx.nn.MLP(
            state_size + 2,
            state_size,
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
    ) -> Float[Array, "*batch state"]:
        del dy, args
        size = self.state_size
        if not eqx.is_array(y) or y.ndim == 0 or y.shape[-1] != size:
            raise ValueError(
                f"This `MidpointMLP` is for states that are one array of shape "
                f"`(..., {size})`, but got {eqx.tree_pformat(y)}. Pass the size of the "
                "state's last axis as `state_size`, or subclass `AbstractMidpoint` for "
                "other states; and use another adjoint than `BacksolveAdjoint`, which "
                "solves for larger ones."
            )
        times = jnp.stack([jnp.asarray(t, y.dtype), jnp.asarray(dt, y.dtype)])
        times = jnp.broadcast_to(times, (*y.shape[:-1], 2))
        inputs = jnp.concatenate([times, y], axis=-1)
        flat = jax.vmap(self.mlp)(inputs.reshape(-1, size + 2))
        return flat.reshape(y.shape)
