from collections.abc import Callable
from typing import ClassVar, TypeAlias

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._checks import as_state, check_integer, check_time_driven
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, VF, Y
from .._jet import jet
from .._misc import just_after
from .._solution import vector_field
from .error_estimate import larger, WITHIN_STEP
from .interpolation import step_fraction
from .layout import StateLayout
from .phi import phi_functions, phi_functions_of_double


_LARGEST = 128
_Flat: TypeAlias = Float[Array, "*batch n"]


class ExponentialInterpolation(dfx.AbstractLocalInterpolation):
    r"""Interpolation by the function $y_0 + \sum_{k = 1}^5 s^k \varphi_k(s A)\, v_k$ of
    $s = (t - t_0) / (t_1 - t_0)$."""

    t0: RealScalarLike
    t1: RealScalarLike
    y0: Y
    layout: StateLayout
    matrix: Float[Array, "*batch n n"]
    vectors: Float[Array, "*batch 5 n"]

    def evaluate(
        self, t0: RealScalarLike, t1: RealScalarLike | None = None, left: bool = True
    ) -> PyTree[Array]:
        """Evaluates the interpolation, as `diffrax.AbstractPath.evaluate` does."""
        if t1 is not None:
            difference = lambda a, b: a - b
            return jtu.tree_map(difference, self.evaluate(t1), self.evaluate(t0))
        s = step_fraction(t0, self.t0, self.t1).astype(self.matrix.dtype)
        phis = phi_functions(s * self.matrix, 5)[..., 1:, :, :]
        powers = jnp.stack([s**k for k in range(1, 6)])
        change = jnp.einsum("k,...kij,...kj->...i", powers, phis, self.vectors)
        x0 = self.layout.flatten(self.y0)
        return self.layout.unflatten(x0 + change, self.y0)


class ExponentialTaylorSolver(dfx.AbstractAdaptiveSolver[None]):
    r"""Exponential integrator of order 5, for stiff systems with small states.

    Use it in adaptive solves with at most 128 real entries in the state of each sample.
    It solves no nonlinear systems, and it is exact for linear systems with any step
    size. For larger states use an implicit solver, such as `diffrax.Kvaerno5`.

    In each step, the vector field is the sum of its linearization at the start and a
    remainder $N$. With $t = t_0 + s h$,

    $$\frac{\mathrm{d}y}{\mathrm{d}s} = F + A (y - y_0) + s G + N(s, y),$$

    where $F = h f$, $A = h \partial_y f$ and $G = h^2 \partial_t f$ at $(t_0, y_0)$.
    Along the solution, the remainder is approximated by $n_2 s^2 + n_3 s^3 + n_4 s^4$.
    Taylor mode computes $n_2$, the second coefficient of $h f(t_0 + s h, y_0 + s F)$.
    The other two interpolate $N$ at the states $y(\tfrac{1}{2})$ and $y(1)$ of the
    solution with $n_2$ alone. Then

    $$\begin{aligned}
    y(s) ={}& y_0 + s \varphi_1(s A) F + s^2 \varphi_2(s A) G \\
    & + \sum_{k = 2}^4 k!\, s^{k + 1} \varphi_{k + 1}(s A)\, n_k, \\
    \varphi_k(A) ={}& \sum_j \frac{A^j}{(j + k)!}.
    \end{aligned}$$

    A step of a linear system, with a forcing that is linear in time, is exact up to
    rounding. Uses $y(s)$ for dense/ts output. The error estimate is the larger of the
    term with $n_4$ and the defect of $y(s)$ at another point of the step.

    **Cost:** each step costs about six vector field evaluations, one Jacobian-vector
    product for each of the $n$ entries of the state and one for time, and about $10 +
    \log_2 \lVert A \rVert$ products of $n \times n$ matrices for each function. An
    adaptive step costs one more evaluation, and these matrix products a second time.
    Each evaluation of dense output costs the matrix products.

    ??? cite "Reference"

        The method is similar to those of Hochbruck, Ostermann and Schweitzer,
        "Exponential Rosenbrock-type methods", SIAM Journal on Numerical Analysis 2009,
        which have stages in place of the Taylor coefficient.
    """

    batch_axes: int = eqx.field(static=True)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., ExponentialInterpolation]] = (
        ExponentialInterpolation
    )

    def __init__(self, batch_axes: int = 0):
        """**Arguments:**

        - `batch_axes`: the number of leading axes of each leaf of the state that are
            batch axes. The vector field must not mix samples along them. Each sample
            then has a separate Jacobian.

        **Raises:**

        A `ValueError` if `batch_axes` is not a nonnegative integer.
        """
        self.batch_axes = check_integer(batch_axes, "batch_axes", 0)

    def order(self, terms: dfx.AbstractTerm) -> int:
        del terms
        return 5

    def init(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> None:
        del t0, t1, args
        check_time_driven(terms)
        _check_state(y0, self.batch_axes)

    def step(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: None,
        made_jump: BoolScalarLike,
    ) -> tuple[Y, Y, DenseInfo, None, dfx.RESULTS]:
        del solver_state, made_jump
        layout = StateLayout.of(y0, self.batch_axes)
        field = vector_field(terms, args, terms.contr(t0, t1))

        def flat_field(t: RealScalarLike, x: _Flat) -> _Flat:
            return layout.flatten(field(t, layout.unflatten(x, y0)))

        x0 = layout.flatten(y0)
        x1, error, matrix, vectors = _step(flat_field, t0, t1, x0)
        dense_info = dict(y0=y0, layout=layout, matrix=matrix, vectors=vectors)
        y1, y_error = layout.unflatten(x1, y0), layout.unflatten(error, y0)
        return y1, y_error, dense_info, None, dfx.RESULTS.successful

    def func(
        self, terms: dfx.AbstractTerm, t0: RealScalarLike, y0: Y, args: Args
    ) -> VF:
        return terms.vf(t0, y0, args)


def _step(
    field: Callable[[RealScalarLike, _Flat], _Flat],
    t0: RealScalarLike,
    t1: RealScalarLike,
    x0: _Flat,
) -> tuple[_Flat, _Flat, Float[Array, "*batch n n"], Float[Array, "*batch 5 n"]]:
    """Computes the new state, its error, and the interpolation's matrix and vectors."""
    h = t1 - t0
    # At jumps and kinks in time, take the side on which the step lies.
    start, end = just_after(t0, h, h), just_after(t1, -h, h)
    slope, matrix, trend = _linearize(field, start, h, x0)
    line = ((h, jnp.zeros_like(h)), (slope, jnp.zeros_like(slope)))
    _, (_, second) = jet(field, (start, x0), line, factorial_scaled=False)

    at_half = phi_functions(0.5 * matrix, 5)
    at_end = phi_functions_of_double(at_half)

    def state(s: float, phis: Array, vectors: list[_Flat]) -> _Flat:
        terms = [
            s**k * _product(phis[..., k, :, :], v) for k, v in enumerate(vectors, 1)
        ]
        return sum(terms, x0)

    def remainder(s: float, t: RealScalarLike, phis: Array) -> _Flat:
        x = state(s, phis, vectors)
        return field(t, x) - slope - _product(matrix, x - x0) - s * trend

    vectors = [slope, trend, 2 * second]
    # The rest of the remainder is n_3 s^3 + n_4 s^4.
    half = remainder(0.5, t0 + 0.5 * h, at_half) - 0.25 * second
    whole = remainder(1.0, end, at_end) - second
    fourth = 2 * whole - 16 * half
    third = whole - fourth
    vectors += [6 * third, 24 * fourth]
    error = _product(at_end[..., 5, :, :], vectors[-1])
    # In the embedded method, the remainder at the end takes the place of n_3.
    error -= 6 * _product(at_end[..., 4, :, :], fourth)
    # A forcing may be zero at all of the three points: look at another one.
    s = WITHIN_STEP
    at_point = phi_functions(s * matrix, 5)
    defect = remainder(s, t0 + s * h, at_point)
    defect -= s**2 * second + s**3 * third + s**4 * fourth
    missed = _product(at_end[..., 1, :, :], defect)
    stacked = jnp.stack(vectors, axis=-2)
    return state(1.0, at_end, vectors), larger(error, missed), matrix, stacked


def _product(matrix: Float[Array, "*batch n n"], vector: _Flat) -> _Flat:
    return jnp.einsum("...ij,...j->...i", matrix, vector)


def _linearize(
    field: Callable[[RealScalarLike, _Flat], _Flat],
    t: RealScalarLike,
    h: RealScalarLike,
    x: _Flat,
) -> tuple[_Flat, Float[Array, "*batch n n"], _Flat]:
    """Computes a field, its Jacobian in the state, and its derivative in time."""
    size = x.shape[-1]
    times = jnp.zeros(size + 1, jnp.result_type(t)).at[size].set(h)
    states = jnp.eye(size + 1, size, dtype=x.dtype)
    shape = (size + 1, *(1,) * (x.ndim - 1), size)
    states = jnp.broadcast_to(states.reshape(shape), (size + 1, *x.shape))
    value, linear = jax.linearize(field, t, x)
    columns = jax.vmap(linear)(times, states)
    return value, jnp.moveaxis(columns[:-1], 0, -1), columns[-1]


def _check_state(y: Y, batch_axes: int) -> None:
    leaves = jtu.tree_leaves(as_state(y))
    if any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise ValueError(
            "An `ExponentialTaylorSolver` needs a real state, but got one with complex "
            "numbers. Solve for the real and the imaginary part."
        )
    batches = {leaf.shape[:batch_axes] for leaf in leaves}
    if len(batches) > 1 or any(leaf.ndim < batch_axes for leaf in leaves):
        raise ValueError(
            f"With `batch_axes={batch_axes}` all leaves of the state must have the "
            f"same {batch_axes} leading axes, but got {eqx.tree_pformat(y)}."
        )
    size = StateLayout.of(y, batch_axes).size
    if size > _LARGEST:
        raise ValueError(
            "An `ExponentialTaylorSolver` computes functions of the Jacobian, a dense "
            f"matrix. It is for states of at most {_LARGEST} entries, but got one of "
            f"{size}. If leading axes of the state are for samples, pass their number "
            "as `batch_axes`. Otherwise use an implicit solver, such as "
            "`diffrax.Kvaerno5()`."
        )
