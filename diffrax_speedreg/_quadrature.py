"""Quadrature of a regularizer at nodes on a solution."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Real, Shaped

from ._checks import (
    check_is,
    check_key,
    check_positive_integer,
    check_real_scalar,
    check_that,
    check_time_driven,
)
from ._custom_types import Args, RealScalarLike
from ._methods import AbstractMethod, add_sub, SolveCall, split_sub
from ._misc import as_times, just_after, time_dtype
from ._regularizers import AbstractRegularizer


class Quadrature(AbstractMethod):
    r"""Quadrature that integrates a regularizer after a solve, from the states at its
    nodes:

    $$\left| \int_{t_0}^{t_1} R(t, y(t))\, \mathrm{d}t \right| \approx
    \sum_i w_i R(t_i, y(t_i)).$$

    Use it if you call `diffrax.diffeqsolve` yourself. To get one, call `quadrature` of
    a [`diffrax_speedreg.gauss_legendre`][], [`diffrax_speedreg.random_nodes`][] or
    [`diffrax_speedreg.trapezoidal`][]. It is also a method for
    [`diffrax_speedreg.regularized_solve`][], with your nodes and weights.

    !!! example

        ```python
        quadrature = dsr.gauss_legendre(8).quadrature(t0, t1)
        saveat = quadrature.saveat(diffrax.SaveAt(t1=True))
        solution, ys = quadrature.split(diffrax.diffeqsolve(..., saveat=saveat))
        integral = quadrature.integrate(dsr.DerivativeNorm(3), term, ys, args)
        ```

    If a node is at a kink of the vector field in time, such as a knot of an
    interpolation, the integrand is that of the later side. At the latest of several
    nodes it is that of the earlier side.

    **Attributes:**

    - `ts`: the nodes, a vector of times in the direction of the solve.
    - `weights`: the weights $w_i$, a vector of the same shape, nonnegative and in the
        units of time.
    """

    ts: Real[Array, " nodes"]
    weights: Real[Array, " nodes"]

    def __check_init__(self):
        parts = (self.ts, self.weights)
        shapes = [jnp.shape(x) if eqx.is_array(x) else () for x in parts]
        if shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0] == (0,):
            raise ValueError(
                "A `Quadrature` needs at least one node, and as many weights, in "
                f"arrays with one axis, but got {eqx.tree_pformat(parts)}."
            )

    def saveat(self, saveat: dfx.SaveAt | None = None) -> dfx.SaveAt:
        """Adds the nodes to a `diffrax.SaveAt`.

        **Arguments:**

        - `saveat`: the `diffrax.SaveAt` without the nodes; by default it saves the
            final state.

        **Returns:**

        A `diffrax.SaveAt` for `diffrax.diffeqsolve`.
        """
        saveat = dfx.SaveAt(t1=True) if saveat is None else saveat
        check_is(saveat, dfx.SaveAt, "saveat", "diffrax.SaveAt(t1=True)")
        return add_sub(saveat, dfx.SubSaveAt(ts=self.ts))

    def split(self, solution: dfx.Solution) -> tuple[dfx.Solution, PyTree[Array]]:
        """Splits a solution that was saved with `saveat`.

        **Arguments:**

        - `solution`: the solution that `diffrax.diffeqsolve` returned.

        **Returns:**

        A pair: the solution without the nodes, and the states at the nodes, which have
        a first axis for the nodes.

        **Raises:**

        A `ValueError` if the solution was not saved with `saveat`.
        """
        check_is(solution, dfx.Solution, "solution", "diffrax.diffeqsolve(...)")
        solution, _, ys = split_sub(solution)
        return solution, ys

    def integrate(
        self,
        regularizer: AbstractRegularizer,
        term: dfx.AbstractTerm,
        ys: PyTree[Shaped[Array, "nodes ..."]],
        args: Args = None,
    ) -> Real[Array, ""]:
        """Integrates a regularizer.

        **Arguments:**

        - `regularizer`: the regularizer $R$.
        - `term`, `args`: the term and the arguments of the solve.
        - `ys`: the states at the nodes, from `split`, or from `jax.vmap` of the
            `evaluate` of a dense solution.

        **Returns:**

        A nonnegative scalar. It is NaN if a state is not finite, as for nodes after the
        time at which the solve failed, or at which an event ended it.

        **Raises:**

        A `ValueError` if `ys` does not have as many states as there are nodes.

        **Cost:** one evaluation of the regularizer for each node, all at once.
        """
        example = "DerivativeNorm(3)"
        check_is(regularizer, AbstractRegularizer, "regularizer", example)
        check_time_driven(term)
        self._check_states(ys)
        return self._integrate(regularizer, term, ys, args)

    @eqx.filter_jit
    def _integrate(
        self,
        regularizer: AbstractRegularizer,
        term: dfx.AbstractTerm,
        ys: PyTree[Array],
        args: Args,
    ) -> Real[Array, ""]:
        def evaluate(t: RealScalarLike, y: PyTree[Array]) -> Real[Array, ""]:
            return regularizer.evaluate(term, t, y, args)[1]

        values = jax.vmap(evaluate)(_one_sided(self.ts), ys)
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

    def solve(
        self, call: SolveCall, regularizer: AbstractRegularizer
    ) -> tuple[dfx.Solution, Real[Array, ""]]:
        if call.event is not None:
            raise ValueError(
                "The nodes of a `Quadrature` are fixed, and an event may end the solve "
                "before them. Use `method=gauss_legendre()`."
            )
        t0, t1 = call.times
        _check_inside(self.ts, t0, t1)
        ts = self.ts.astype(t0.dtype)
        solution, _, ys = call.solve_saving(dfx.SubSaveAt(ts=ts))
        return solution, self.integrate(regularizer, call.terms, ys, call.args)


class _Nodes(AbstractMethod):
    """Nodes and weights for the interval from 0 to 1, which are scaled to a solve.

    They are scalars, not an array: a method that is a constant of a module must not
    initialize JAX's devices, which a script may still want to set up.
    """

    nodes: tuple[RealScalarLike, ...]
    weights: tuple[RealScalarLike, ...]

    def quadrature(self, t0: RealScalarLike, t1: RealScalarLike) -> Quadrature:
        """Scales the nodes to the time of a solve.

        **Arguments:**

        - `t0`, `t1`: the times between which to integrate. `t1` may be the earlier one.

        **Returns:**

        The [`diffrax_speedreg.Quadrature`][]. It can be differentiated with respect to
        both times.
        """
        check_real_scalar(t0, "t0")
        check_real_scalar(t1, "t1")
        start, end = as_times(t0, t1)
        if isinstance(t0, int | float) and isinstance(t1, int | float):
            start, end = jnp.asarray(float(t0)), jnp.asarray(float(t1))
        dt = end - start
        ts = start + dt * _weak(self.nodes)
        return Quadrature(ts, jnp.abs(dt) * _weak(self.weights))

    def solve(
        self, call: SolveCall, regularizer: AbstractRegularizer
    ) -> tuple[dfx.Solution, Real[Array, ""]]:
        if call.event is None:
            return self.quadrature(*call.times).solve(call, regularizer)
        if call.others["max_steps"] is None:
            raise ValueError(
                "With an event, nodes are placed on the dense output, which needs a "
                "`max_steps`. Pass one, or use `method=augmented()`."
            )
        # The interval is not known before the solve.
        saveat = eqx.tree_at(lambda s: s.dense, call.saveat, True)
        end = dfx.SubSaveAt(t1=True)
        solution, ts, _ = call.solve_saving(end, saveat=saveat)
        quadrature = self.quadrature(call.times[0], ts[-1])
        ys = jax.vmap(solution.evaluate)(quadrature.ts)
        integral = quadrature.integrate(regularizer, call.terms, ys, call.args)
        if not call.saveat.dense:
            solution = eqx.tree_at(lambda s: s.interpolation, solution, None)
        return solution, integral


def gauss_legendre(num_nodes: int = 8) -> _Nodes:
    r"""Method that integrates the regularizer after the solve, by Gauss-Legendre
    quadrature.

    Use it for reported numbers, and for regularizers that
    [`diffrax_speedreg.in_solver`][] can't integrate. With $n$ nodes it is exact for
    polynomials in time of degree $2n - 1$. The error decreases exponentially with $n$
    for smooth integrands, and as $1 / n$ for derivatives of piecewise smooth vector
    fields, such as networks with `relu`.

    **Arguments:**

    - `num_nodes`: $n$, at least 1. A `ValueError` is raised for anything else.

    **Returns:**

    A method for [`diffrax_speedreg.regularized_solve`][]. If you call
    `diffrax.diffeqsolve` yourself, its `quadrature(t0, t1)` is the
    [`diffrax_speedreg.Quadrature`][].

    **Cost:** one evaluation of the regularizer for each node. If there is an event, the
    dense output is saved too.
    """
    num_nodes = check_positive_integer(num_nodes, "num_nodes")
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return _Nodes(tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist()))


def random_nodes(key: PRNGKeyArray, num_nodes: int = 1) -> _Nodes:
    r"""Method that estimates the integral of the regularizer after the solve, from
    random nodes.

    Use it in training: the estimate is unbiased even with one node, and its variance
    adds to that of stochastic gradient descent. The interval is divided into equal
    parts, and one node is drawn uniformly from each part.

    **Arguments:**

    - `key`: a `jax.random` key. Use a new key for every solve.
    - `num_nodes`: the number of nodes, at least 1. A `ValueError` is raised for
        anything else.

    **Returns:**

    A method for [`diffrax_speedreg.regularized_solve`][], with a `quadrature(t0, t1)`
    as [`diffrax_speedreg.gauss_legendre`][] has it.

    **Cost:** one evaluation of the regularizer for each node.
    """
    check_key(key)
    num_nodes = check_positive_integer(num_nodes, "num_nodes")
    bits = jr.bits(key, (num_nodes,), jnp.uint32)
    # From integers, which have no precision that the nodes would take over.
    with jax.numpy_dtype_promotion("standard"):
        nodes = (jnp.arange(num_nodes) + bits * 2.0**-32) / num_nodes
    return _Nodes(tuple(nodes), (1 / num_nodes,) * num_nodes)


def _weak(values: tuple[RealScalarLike, ...]) -> Real[Array, " nodes"]:
    """Makes weakly typed numbers, which do not promote the dtype of a solve's times."""
    return jnp.stack([jnp.asarray(value) for value in values])


class _Trapezoidal(AbstractMethod):
    def quadrature(self, ts: Real[Array, " nodes"]) -> Quadrature:
        """Weighs times at which a solve has saved its states.

        **Arguments:**

        - `ts`: the times, at least 2, in the direction of the solve. The integral goes
            from the first to the last of them. Infinities at the end, which stand for
            the times that a solve did not reach, have no weight.

        **Returns:**

        The [`diffrax_speedreg.Quadrature`][].

        **Raises:**

        A `ValueError` for anything but a sequence of at least 2 times, and for times
        that are not sorted, in either order; if they are traced, an error at run time.
        """
        ts = jnp.asarray(ts)
        if ts.ndim != 1 or ts.size < 2:
            raise ValueError(
                "`ts` must be the times at which a solve saves states, at least 2 in "
                f"an array with one axis, but got one of shape {ts.shape}."
            )
        check_that(not jnp.iscomplexobj(ts), "ts", "real", ts)
        return self._quadrature(_check_sorted(ts))

    def _quadrature(self, ts: Array) -> Quadrature:
        ts = ts.astype(time_dtype(ts[0], ts[-1]))
        halves = jnp.abs(jnp.diff(ts)) / 2
        halves = jnp.where(jnp.isfinite(halves), halves, 0)
        return Quadrature(ts, jnp.pad(halves, (0, 1)) + jnp.pad(halves, (1, 0)))

    def solve(
        self, call: SolveCall, regularizer: AbstractRegularizer
    ) -> tuple[dfx.Solution, Real[Array, ""]]:
        t0, t1 = call.times
        steps = min((sub.steps for sub in call.subs if sub.steps), default=0)
        saved = [sub.ts.astype(t0.dtype) for sub in call.subs if sub.ts is not None]
        if not saved and not steps:
            raise ValueError(
                "`method=trapezoidal()` integrates over the times that a solve saves, "
                f"but got `saveat={call.saveat}`. Save at some, by "
                "`diffrax.SaveAt(ts=...)` or `steps=True`, or use "
                "`method=gauss_legendre()`."
            )
        ts = jnp.concatenate(saved) if saved else None
        if ts is not None and len(saved) > 1:
            ts = jnp.where(t1 < t0, -1, 1) * jnp.sort(jnp.where(t1 < t0, -1, 1) * ts)
        added = dfx.SubSaveAt(t0=True, t1=True, ts=ts, steps=steps)
        solution, ts, ys = call.solve_saving(added)
        # Where several sequences end, or nothing was saved, the last state stands in.
        last = jnp.sum(jnp.isfinite(ts)) - 1
        index = jnp.minimum(jnp.arange(ts.size), last)
        quadrature = self._quadrature(ts[index])
        ys = jtu.tree_map(lambda leaf: leaf[index], ys)
        return solution, quadrature.integrate(regularizer, call.terms, ys, call.args)


def trapezoidal() -> _Trapezoidal:
    r"""Method that integrates the regularizer after the solve, by the trapezoidal rule
    over the saved times.

    Use it for models that save their state at many times, and with
    `diffrax.SaveAt(steps=True)` for stiff transients. With $n$ equally spaced times,
    the error decreases as $1 / n^2$, or as $1 / n$ if the integrand jumps. The two ends
    of the solve are always among the nodes.

    !!! example

        ```python
        solution, integral = dsr.regularized_solve(
            ..., saveat=diffrax.SaveAt(ts=ts), method=dsr.trapezoidal()
        )
        ```

    **Returns:**

    A method for [`diffrax_speedreg.regularized_solve`][]. If you have the states
    already, its `quadrature(ts)` is the [`diffrax_speedreg.Quadrature`][] for their
    times.

    **Cost:** one evaluation of the regularizer for each saved time.
    """
    return _Trapezoidal()


def _one_sided(ts: Real[Array, " nodes"]) -> Real[Array, " nodes"]:
    """Returns the nodes, with the latest of them moved inwards by a few roundings."""
    finite = jnp.isfinite(ts)
    latest = jnp.max(ts, where=finite, initial=-jnp.inf)
    dt = jnp.min(ts, where=finite, initial=jnp.inf) - latest
    return just_after(ts, jnp.where(ts == latest, dt, 0), dt)


def _check_sorted(ts: Array) -> Array:
    finite = jnp.isfinite(ts)
    steps = jnp.diff(jnp.where(finite, ts, 0))
    inside, after = finite[:-1] & finite[1:], ~finite[:-1] & finite[1:]
    increasing, decreasing = (
        jnp.all(~inside | (sign * steps >= 0)) for sign in (1, -1)
    )
    wrong = ~(increasing | decreasing) | jnp.any(after) | jnp.any(jnp.isnan(ts))
    message = (
        "`ts` must be sorted, in increasing or in decreasing order, with infinities at "
        "the end alone"
    )
    if not isinstance(wrong, jax.core.Tracer):
        if wrong:
            raise ValueError(f"{message}, but got {ts}. Sort the times and the states.")
        return ts
    return eqx.error_if(ts, wrong, f"{message}.")


def _check_inside(ts: Array, t0: Array, t1: Array) -> None:
    if any(isinstance(x, jax.core.Tracer) for x in (ts, t0, t1)):
        return  # Diffrax checks at run time.
    first, last = sorted((float(t0), float(t1)))
    outside = [float(t) for t in ts if not first <= t <= last]
    if outside:
        raise ValueError(
            f"The nodes of a quadrature must lie in the interval of the solve, from "
            f"{first:g} to {last:g}, but got {outside}. Use "
            "`method=gauss_legendre()`, whose nodes are scaled to the solve, or "
            "`quadrature(t0, t1)` of it with the times of this solve."
        )
    if jnp.any(jnp.diff(ts) * (1 if t0 <= t1 else -1) < 0):
        raise ValueError(
            "The nodes of a quadrature must be sorted in the direction of the solve, "
            f"from {float(t0):g} to {float(t1):g}, but got {ts}. Sort them together "
            "with their weights."
        )
