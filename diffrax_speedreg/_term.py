from typing import Any, TypeGuard

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from equinox.internal import ω
from jaxtyping import Array, Inexact, PyTree, Shaped

from ._checks import as_state, check_time_driven
from ._custom_types import Args, RealScalarLike, Y
from ._misc import nan_as, real_dtype
from ._regularizers import AbstractRegularizer, DerivativeNorm
from ._solution import unit_control


class RegularizedState(eqx.Module):
    r"""State together with the integral of the regularizer up to it.

    **Attributes:**

    - `y`: the state of the wrapped term.
    - `signed_integral`: the integral of the regularizer from the initial time to this
        one, which is negative where a solve runs backwards. Its absolute value is
        returned by [`diffrax_speedreg.SpeedRegularizedTerm.split`][].
    """

    y: PyTree[Shaped[Array, "..."]]
    signed_integral: Shaped[Array, "..."]

    def __sub__(self, other: "RegularizedState") -> "RegularizedState":
        """Computes the increment that `solution.evaluate(t0, t1)` returns."""
        return (self**ω - other**ω).ω


class _AugmentedField(eqx.Module):
    """The vector field of the augmented state."""

    term: dfx.AbstractTerm
    regularizer: AbstractRegularizer

    def __call__(
        self, t: RealScalarLike, state: RegularizedState, args: Args
    ) -> RegularizedState:
        _check_augmented(state)
        vf, integrand = self.regularizer.evaluate(self.term, t, state.y, args)
        dy = self.term.prod(vf, unit_control(self.term, state.y))
        return RegularizedState(dy, integrand.astype(state.signed_integral.dtype))


class SpeedRegularizedTerm(dfx.ODETerm[RegularizedState]):
    r"""Wraps a term, and integrates a regularizer as one more entry of the state.

    Use it if you call `diffrax.diffeqsolve` yourself. Otherwise use
    [`diffrax_speedreg.regularized_solve`][] with `method=augmented()`, which does the
    same.

    For $\frac{\mathrm{d}y}{\mathrm{d}t} = f(t, y)$ this is the term of

    $$\frac{\mathrm{d}}{\mathrm{d}t} (y, r) = \left( f(t, y),\;
    \frac{1}{N} \left\lVert \frac{\mathrm{d}^K y}{\mathrm{d}t^K} \right\rVert^2
    \right),$$

    so that $r = R_K$ at the end. Add $\lambda R_K$ to the loss, so that the trained
    equation takes fewer evaluations to solve. $R_1$ is the kinetic energy.

    !!! example

        ```python
        term = dsr.SpeedRegularizedTerm(diffrax.ODETerm(field), order=3)
        controller = diffrax.PIDController(rtol=1e-6, atol=1e-6, norm=term.norm)
        sol = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, None, term.init(y0),
            stepsize_controller=controller,
        )
        ys, integral = term.split(sol.ys)
        ```

    Pass `norm=term.norm` to an adaptive step size controller. This norm ignores $r$, so
    that the steps are those of a solve without the regularizer. With another norm the
    solver also integrates $r$ accurately, which takes more steps.

    The integral is nonnegative in both directions of time. For a batch that is solved
    as one state, it is the mean over the samples.

    **Cost:** about `order` evaluations of the wrapped vector field for each evaluation.

    ??? cite "Reference"

        Kelly, Bettencourt, Johnson and Duvenaud, "Learning Differential Equations that
        are Easy to Solve", NeurIPS 2020. The mean over entries, where the paper has the
        sum of squares, is what its reference implementation computes.
    """

    vector_field: _AugmentedField

    def __init__(
        self,
        term: dfx.AbstractTerm,
        order: int | None = None,
        *,
        regularizer: AbstractRegularizer | None = None,
    ):
        r"""**Arguments:**

        - `term`: the term to wrap, of the form $f(t, y, \text{args})\,\mathrm{d}t$.
        - `order`: $K$, a positive integer. The default is 3.
        - `regularizer`: the regularizer. The default is `DerivativeNorm(order)`. Pass
            either an order or a regularizer.

        **Raises:**

        A `ValueError` if `term`, `order` or `regularizer` is of another kind, or if
        both `order` and `regularizer` are passed.
        """
        check_time_driven(term)
        if not isinstance(regularizer, AbstractRegularizer | None):
            raise ValueError(
                "`regularizer` must be an `AbstractRegularizer`, such as "
                f"`DerivativeNorm(3)`, or `None`, but got {regularizer!r}."
            )
        if order is not None and regularizer is not None:
            raise ValueError(
                f"Pass either `order={order}` or `regularizer={regularizer!r}`, not "
                f"both: the order is that of the regularizer `DerivativeNorm({order})`."
            )
        if regularizer is None:
            regularizer = DerivativeNorm(3 if order is None else order)
        field = _AugmentedField(term, regularizer)
        self.vector_field = field  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def term(self) -> dfx.AbstractTerm:
        return self.vector_field.term

    @property
    def regularizer(self) -> AbstractRegularizer:
        return self.vector_field.regularizer

    def init(self, y0: Y) -> RegularizedState:
        """Makes the augmented initial state for `diffrax.diffeqsolve`.

        **Arguments:**

        - `y0`: the initial state of the wrapped term, a pytree of floating-point or
            complex arrays.

        **Returns:**

        The augmented state, with an integral of zero.

        **Raises:**

        A `ValueError` if `y0` has arrays of another dtype.
        """
        y0 = as_state(y0)
        # Complex if the state is: Diffrax's Runge-Kutta methods mix its leaves.
        complex_ = [x.dtype for x in jtu.tree_leaves(y0) if jnp.iscomplexobj(x)]
        dtype = complex_[0] if complex_ else real_dtype(y0)
        return RegularizedState(y0, jnp.zeros((), dtype))

    def split(
        self, ys: RegularizedState
    ) -> tuple[PyTree[Array], Inexact[Array, "..."]]:
        """Splits augmented states.

        **Arguments:**

        - `ys`: augmented states, such as `solution.ys`, with any leading axes.

        **Returns:**

        A pair: the states of the wrapped term, and the integral of the regularizer up
        to each state. The integral is nonnegative, in the units of the squared state
        divided by those of time to the power `2 * order - 1`. It is NaN where the state
        is.
        """
        _check_augmented(ys)
        return ys.y, nan_as(jnp.abs(jnp.real(ys.signed_integral)), ys.y)

    @staticmethod
    def norm(state: RegularizedState | PyTree[Array]) -> Array:
        """Computes the root mean square of the entries of `y`.

        With this norm of a step size controller, the step sizes do not depend on the
        regularizer.

        **Arguments:**

        - `state`: a pytree like the augmented state. (For any other pytree, such as the
            larger state that `diffrax.BacksolveAdjoint` solves for with the same
            controller, the norm is the root mean square of all entries.)

        **Returns:**

        A nonnegative scalar.
        """
        return optx.rms_norm(state.y if is_augmented(state) else state)


def is_augmented(node: Any) -> TypeGuard[RegularizedState]:
    return isinstance(node, RegularizedState)


def _check_augmented(state: Any) -> None:
    if not isinstance(state, RegularizedState):
        raise ValueError(
            "The state of a `SpeedRegularizedTerm` must be a `RegularizedState`, but "
            f"got {eqx.tree_pformat(state)}. Pass `term.init(y0)` as the initial state."
        )
