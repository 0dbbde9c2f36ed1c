from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Real, Shaped

from ._checks import check_positive_integer
from ._custom_types import Args, RealScalarLike
from ._regularizers import AbstractRegularizer


_requested, _nodes = "requested", "nodes"


class Quadrature(eqx.Module):
    r"""Integrates a regularizer after a solve, from the solution at a few nodes:

    $$\left| \int_{t_0}^{t_1} R(t, y(t))\, \mathrm{d}t \right| \approx
    \sum_i w_i R(t_i, y(t_i)).$$

    The solve itself is that of the unregularized term, by any solver, with any steps,
    saving whatever it would save anyway.

    !!! example

        ```python
        quadrature = dsr.gauss_legendre(t0, t1, 8)
        saveat = quadrature.saveat(diffrax.SaveAt(t1=True))
        solution, nodes = quadrature.split(diffrax.diffeqsolve(..., saveat=saveat))
        speed = quadrature.integrate(dsr.Speed(3), term, nodes, args)
        ```

    Make one with [`diffrax_speedreg.gauss_legendre`][] or
    [`diffrax_speedreg.random_nodes`][], or for states that a solve saves anyway with
    [`diffrax_speedreg.trapezoidal`][].

    **Attributes:**

    - `ts`: the nodes, in the direction of the solve.
    - `weights`: as many weights, nonnegative, in the units of time.
    """

    ts: Real[Array, " nodes"]
    weights: Real[Array, " nodes"]

    def saveat(self, saveat: dfx.SaveAt | None = None) -> dfx.SaveAt:
        """Adds the nodes to what a solve saves.

        **Arguments:**

        - `saveat`: what else to save; by default the final state.

        **Returns:**

        What to pass to `diffrax.diffeqsolve`.
        """
        saveat = dfx.SaveAt(t1=True) if saveat is None else saveat
        subs = {_requested: saveat.subs, _nodes: dfx.SubSaveAt(ts=self.ts)}
        return eqx.tree_at(
            lambda s: s.subs, saveat, subs, is_leaf=lambda leaf: leaf is None
        )

    def split(self, solution: dfx.Solution) -> tuple[dfx.Solution, PyTree[Array]]:
        """Takes a solution apart that was saved with `saveat`.

        **Arguments:**

        - `solution`: what `diffrax.diffeqsolve` returned.

        **Returns:**

        The solution as it would have been without the nodes, and the states there, in
        arrays with a first axis for the nodes.

        **Raises:**

        A `ValueError` for a solution that was saved in another way.
        """
        ts, ys = solution.ts, solution.ys
        if not isinstance(ys, dict) or ys.keys() != {_requested, _nodes}:
            raise ValueError(
                "The solution was not saved at the nodes of this quadrature: pass "
                "`saveat=quadrature.saveat(...)` to `diffrax.diffeqsolve`."
            )
        assert isinstance(ts, dict)
        solution = eqx.tree_at(
            lambda s: (s.ts, s.ys),
            solution,
            (ts[_requested], ys[_requested]),
            is_leaf=lambda leaf: leaf is None or leaf is ts or leaf is ys,
        )
        return solution, ys[_nodes]

    def integrate(
        self,
        regularizer: AbstractRegularizer,
        term: dfx.AbstractTerm,
        ys: PyTree[Shaped[Array, "nodes ..."]],
        args: Args = None,
    ) -> Real[Array, ""]:
        """Integrates a regularizer.

        **Arguments:**

        - `regularizer`: what to integrate.
        - `term`, `args`: those of the solve.
        - `ys`: the states at the nodes, from `split`, or by `jax.vmap` of a dense
            solution's `evaluate`.

        **Returns:**

        A nonnegative scalar. It is NaN if one of the states is not finite, as they are
        where a solve failed, or was ended before by an event.

        **Raises:**

        A `ValueError` if `ys` does not have as many states as there are nodes.

        **Cost:** one evaluation of the regularizer for each node, all at once.
        """
        self._check_states(ys)

        def evaluate(t: RealScalarLike, y: PyTree[Array]) -> Real[Array, ""]:
            return regularizer.evaluate(term, t, y, args)[1]

        values = jax.vmap(evaluate)(self.ts, ys)
        integral = jnp.dot(self.weights.astype(values.dtype), values)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(ys)]
        return jnp.where(jnp.stack(finite).all(), integral, jnp.nan)

    def _check_states(self, ys: PyTree[Any]) -> None:
        shapes = [jnp.shape(leaf) for leaf in jtu.tree_leaves(ys)]
        if not shapes or any(shape[:1] != self.ts.shape for shape in shapes):
            raise ValueError(
                f"`ys` must hold the states at the {self.ts.size} nodes, along the "
                f"first axes of its arrays, but got arrays of shapes {shapes}. Get "
                "them by `solution, ys = quadrature.split(solution)`."
            )


def gauss_legendre(
    t0: RealScalarLike, t1: RealScalarLike, num_nodes: int = 8
) -> Quadrature:
    r"""Gauss-Legendre quadrature over the time of a solve.

    With $n$ nodes it is exact for polynomials in time of degree $2n - 1$, and the error
    decreases exponentially with $n$ for integrands that are smooth; for the
    derivatives of piecewise smooth fields (`relu`) it decreases as $1 / n$.

    **Arguments:**

    - `t0`, `t1`: the times between which to integrate, those of the solve. `t1` may be
        the earlier one.
    - `num_nodes`: $n$, at least 1.

    **Returns:**

    The [`diffrax_speedreg.Quadrature`][]. It can be differentiated with respect to both
    times.
    """
    num_nodes = check_positive_integer(num_nodes, "num_nodes")
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return _on_interval(t0, t1, (nodes + 1) / 2, weights / 2)


def random_nodes(
    key: PRNGKeyArray, t0: RealScalarLike, t1: RealScalarLike, num_nodes: int = 1
) -> Quadrature:
    r"""Random quadrature over the time of a solve, an unbiased estimate.

    Divides the time into equal parts, and draws a node from each, uniformly.

    **Arguments:**

    - `key`: a `jax.random` key; a new one for every solve.
    - `t0`, `t1`: the times between which to integrate, those of the solve. `t1` may be
        the earlier one.
    - `num_nodes`: how many nodes, at least 1.

    **Returns:**

    The [`diffrax_speedreg.Quadrature`][].
    """
    num_nodes = check_positive_integer(num_nodes, "num_nodes")
    uniform = jr.uniform(key, (num_nodes,), _time_dtype(t0, t1))
    nodes = (jnp.arange(num_nodes, dtype=uniform.dtype) + uniform) / num_nodes
    return _on_interval(t0, t1, nodes, np.full(num_nodes, 1 / num_nodes))


def trapezoidal(ts: Real[Array, " nodes"]) -> Quadrature:
    r"""The trapezoidal rule over times at which a solve saves states anyway.

    With $n$ times at equal distances the error decreases as $1 / n^2$. The solve, and
    what it saves, need no change; there is nothing to be split off.

    !!! example

        ```python
        solution = diffrax.diffeqsolve(..., saveat=diffrax.SaveAt(ts=ts))
        speed = dsr.trapezoidal(ts).integrate(dsr.Speed(3), term, solution.ys, args)
        ```

    **Arguments:**

    - `ts`: the times, at least 2, in the direction of the solve. It is integrated from
        the first to the last one.

    **Returns:**

    The [`diffrax_speedreg.Quadrature`][].

    **Raises:**

    A `ValueError` for anything but a sequence of at least 2 times.
    """
    ts = jnp.asarray(ts)
    if ts.ndim != 1 or ts.size < 2:
        raise ValueError(
            "`ts` must be the times that a solve saves states at, at least 2 in an "
            f"array with one axis, but got one of shape {ts.shape}."
        )
    ts = ts.astype(_time_dtype(ts[0], ts[-1]))
    halves = jnp.abs(jnp.diff(ts)) / 2
    return Quadrature(ts, jnp.pad(halves, (0, 1)) + jnp.pad(halves, (1, 0)))


def random_end_time(
    key: PRNGKeyArray, t0: RealScalarLike, t1: RealScalarLike, width: RealScalarLike
) -> Real[Array, ""]:
    r"""A random time to end a solve at during training.

    Drawn uniformly from $[t_1 - w, t_1 + w]$; a vector field that is right for all of
    these has to be nearly at rest by then, and so is simple.

    **Arguments:**

    - `key`: a `jax.random` key; a new one for every solve.
    - `t0`, `t1`: the times of the solve. `t1` may be the earlier one.
    - `width`: $w$, in the units of time, nonnegative and less than $|t_1 - t_0|$, for
        the solve must not change its direction. An error is raised otherwise.

    **Returns:**

    The time to pass as `t1` to `diffrax.diffeqsolve`, and to what integrates a
    regularizer. For evaluation use the true one.

    ??? cite "Reference"

        Ghosh, Behl, Dupont, Torr and Namboodiri, "STEER: Simple Temporal Regularization
        for Neural ODE", NeurIPS 2020, equation 5.
    """
    dtype = _time_dtype(t0, t1)
    t0, t1, width = (jnp.asarray(x, dtype) for x in (t0, t1, width))
    width = eqx.error_if(
        width,
        (width < 0) | (width >= jnp.abs(t1 - t0)),
        "`width` must be nonnegative and less than the time between `t0` and `t1`.",
    )
    return t1 + width * jr.uniform(key, (), dtype, minval=-1, maxval=1)


def _on_interval(
    t0: RealScalarLike,
    t1: RealScalarLike,
    nodes: Array | np.ndarray,
    weights: np.ndarray,
) -> Quadrature:
    """From nodes and weights for the interval from 0 to 1."""
    dtype = _time_dtype(t0, t1)
    start = jnp.asarray(t0, dtype)
    dt = jnp.asarray(t1, dtype) - start
    ts = start + dt * jnp.asarray(nodes, dtype)
    return Quadrature(ts, jnp.abs(dt) * jnp.asarray(weights, dtype))


def _time_dtype(t0: RealScalarLike, t1: RealScalarLike) -> Any:
    """The one that Diffrax gives to time."""
    dtype = jnp.result_type(t0, t1)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
