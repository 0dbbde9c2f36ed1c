"""Ways to differentiate, and their measurement for the benchmarks of the engine."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pandas as pd
from jax.experimental.jet import jet
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree
from probdiffeq import probdiffeq

from .harness import Contestant, measure, Options, Record, Row
from .problems import mean_square, Problem, VectorField
from .report import relative


@dataclasses.dataclass(frozen=True)
class Point:
    """Vector field, with the time, state and order of a derivative."""

    field: VectorField
    t: Float[Array, ""]
    y: PyTree[Array]
    order: int


Way: TypeAlias = Callable[[Point], PyTree[Array]]
# A single evaluation of the field, by which the contestants' times are divided.
FIELD = "field"
OURS, NESTED, JET = "speedreg", "nested jvp", "jet"


def speedreg(at: Point) -> PyTree[Array]:
    """Computes the K-th total time derivative of a solution, without factors."""
    term = dfx.ODETerm(lambda t, y, args: at.field(t, y))
    return dsr.total_derivative(term, at.t, at.y, order=at.order)


def nested_jvp(at: Point) -> PyTree[Array]:
    """Computes the derivative by `jax.jvp` of `jax.jvp`, along the solution.

    To begin with the state instead of the field, to differentiate along a polynomial,
    or to pass on all lower derivatives makes no difference to the gradient's time:
    XLA finds the common parts.
    """

    def differentiate(function: Callable) -> Callable:
        def derivative(t: Array, y: PyTree[Array]) -> PyTree[Array]:
            return jax.jvp(function, (t, y), (jnp.ones_like(t), at.field(t, y)))[1]

        return derivative

    function: Callable = at.field
    for _ in range(at.order - 1):
        function = differentiate(function)
    return function(at.t, at.y)


def jet_first_and_last(at: Point) -> tuple[PyTree[Array], PyTree[Array]]:
    """Computes the first and the K-th derivative by one call of `jax.experimental.jet`
    for each order, as in TayNODE.

    This is the scheme of `sol_recursive` in easy-neural-ode's `mnist.py`. It works on a
    flat vector. Each call gets the derivatives of the call before, and one more entry,
    which affects only an unused output. There, time is always a part of the state; here
    it is only if the field needs it.
    """
    state, field_of, without_time = _autonomous(at)
    flat, unravel = ravel_pytree(state)
    series: list[Array] = [jnp.ones_like(flat)]
    for _ in range(at.order):
        first, rest = jet(
            lambda flat: ravel_pytree(field_of(unravel(flat)))[0], (flat,), (series,)
        )
        series = [first, *rest]
    first, last = (without_time(unravel(series[k])) for k in (0, at.order - 1))
    return first, last


def _probdiffeq(
    at: Point, name: str, num: Callable[[int], Mapping[str, int]]
) -> PyTree:
    """Computes the derivative by [probdiffeq](https://github.com/pnkraemer/probdiffeq).

    It does not vary the time. A field that depends on time therefore gets it as a part
    of the state.
    """
    expand = getattr(probdiffeq, f"jetexpand_ode_{name}")(**num(at.order))
    state, field_of, without_time = _autonomous(at)
    derivatives, _ = expand(probdiffeq.ode_autonomous(field_of), (state,), t=at.t)
    return without_time(derivatives[at.order])


def _autonomous(at: Point) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """Makes a state that includes time, its field, and a function that removes time."""
    if at.field.autonomous:
        return at.y, lambda y: at.field(at.t, y), lambda y: y
    state = at.y, at.t
    return state, lambda s: (at.field(s[1], s[0]), jnp.ones_like(s[1])), lambda s: s[0]


def _num(order: int) -> Mapping[str, int]:
    return dict(num=order)


def _doublings(order: int) -> Mapping[str, int]:
    """Doubling makes 2 n + 2 orders of n (2, 6, 14)."""
    return dict(num_doublings=(order + 1).bit_length() - 1)


WAYS: dict[str, Way] = {
    OURS: speedreg,
    NESTED: nested_jvp,
    JET: lambda at: jet_first_and_last(at)[1],
    "jetexpand unroll": lambda at: _probdiffeq(at, "unroll", _num),
    "jetexpand scan": lambda at: _probdiffeq(at, "padded_scan", _num),
    "jetexpand doubling": lambda at: _probdiffeq(at, "doubling_unroll", _doublings),
    "jetexpand jvp": lambda at: _probdiffeq(at, "via_jvp", _num),
}
# The orders at which doubling is at its best: it takes as long for orders 3 to 5 as for
# 6, and for 7 to 13 as for 14.
ONLY_AT = {"jetexpand doubling": (2, 6)}


@dataclasses.dataclass(frozen=True)
class EngineOptions(Options):
    """Options of the benchmarks of the engine."""

    compile_limit: float = 20.0
    """Limit on the seconds to compile an order; beyond, higher orders are skipped."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a field: its problem, the largest order by batch, and the ways."""

    problem: Callable[[int, Key[Array, ""]], Problem]
    batches: Mapping[int, int]
    ways: Mapping[str, Way]


def rows(
    plans: Mapping[str, Plan], options: EngineOptions
) -> Iterator[tuple[str, list[Row]]]:
    """Measures all plans, at one order after the other, each with the field itself.

    A way that fails, or takes too long to compile, is left out from then on.
    """
    for name, plan in options.choose(plans).items():
        limit = options.compile_limit
        ways = {FIELD: lambda at: at.field(at.t, at.y), **plan.ways}
        for batch in options.batches(*plan.batches):
            problem = plan.problem(batch, jr.key(options.seed))
            highest = plan.batches.get(batch, max(plan.batches.values()))
            for kind in ("forward", "gradient")[: 1 + problem.reverse]:
                stopped: dict[str, str] = {}
                for order in (2, 3) if options.quick else range(1, highest + 1):
                    case = dict(field=name, batch=batch, order=order, kind=kind)
                    running = {k: way for k, way in ways.items() if k not in stopped}
                    found = _rows(case, problem, running, options)
                    found += [
                        case | dict(contestant=k, failure=f"not tried: {why}")
                        for k, why in stopped.items()
                    ]
                    yield "derivatives", found
                    for row in found:
                        if "failure" in row:
                            why = f"failed at order {order}"
                            stopped.setdefault(row["contestant"], why)
                        elif row["trace_seconds"] + row["compile_seconds"] > limit:
                            why = f"took too long to compile at order {order}"
                            stopped[row["contestant"]] = why


def _rows(
    case: Row, problem: Problem, ways: Mapping[str, Way], options: Options
) -> list[Row]:
    order, outputs = case["order"], {}
    args = problem.params, jnp.array(0.5), problem.y

    def describe(name: str, output: PyTree[Array]) -> Row:
        leaves = jtu.tree_leaves(output)
        outputs[name] = np.concatenate([np.ravel(leaf) for leaf in leaves])
        if name in (FIELD, OURS) or OURS not in outputs:
            return {}
        ours = outputs[OURS]
        error = np.max(np.abs(outputs[name] - ours)) / np.max(np.abs(ours))
        return dict(error=float("inf") if np.isnan(error) else float(error))

    contestants = [
        Contestant(
            case | dict(contestant=name),
            functools.partial(_compute, problem, way, case),
            args,
            functools.partial(describe, name),
        )
        for name, way in ways.items()
        if order in ONLY_AT.get(name, (order,))
    ]
    return measure(contestants, options, repeats=1 if options.quick else 3)


def _compute(problem: Problem, way: Way, case: Row, *args: PyTree[Array]) -> PyTree:
    def derivative(params: PyTree[Array], t: Array, y: PyTree[Array]) -> PyTree[Array]:
        return way(Point(problem.bind(params), t, y, case["order"]))

    def loss(*args: PyTree[Array]) -> Array:
        return mean_square(derivative(*args))

    if case["kind"] == "forward":
        return derivative(*args)
    return jax.value_and_grad(loss, problem.argnums)(*args)


def frames(record: Record) -> Mapping[str, pd.DataFrame]:
    """Makes the frames of all rows, and of those at the largest batch of each field.

    Additional columns are `fields` (run time in K times the field's), `pairs` (the same
    in K (K + 1) / 2), `to_layer` (compile time in parts of that of the field `layer`),
    and `ours_...` (this package's figures in parts of each contestant's).
    """
    made = record.frame("derivatives")
    order, case = made["order"], "field batch order kind"
    once = relative(made, "seconds", case, contestant=FIELD)
    same = "batch order kind contestant"
    made = made.assign(
        fields=once / order,
        pairs=2 * once / (order * (order + 1)),
        to_layer=relative(made, "build", same, field="layer"),
        ours_seconds=1 / relative(made, "seconds", case, contestant=OURS),
        ours_build=1 / relative(made, "build", case, contestant=OURS),
    )
    largest = made["batch"] == made.groupby("field")["batch"].transform("max")
    agreement = made.groupby("contestant")[["error"]].max().dropna().reset_index()
    return dict(all=made, largest=made[largest], agreement=agreement)
