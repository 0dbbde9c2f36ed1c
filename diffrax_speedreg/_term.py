from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Inexact, PyTree, Shaped

from ._checks import as_state, check_time_driven
from ._custom_types import Args, Control, RealScalarLike, VF, Y
from ._misc import nan_as, real_dtype
from ._regularizers import AbstractRegularizer, Speed


class SpeedState(eqx.Module):
    r"""A state together with the regularizer gathered up to it.

    **Attributes:**

    - `y`: the state of the wrapped term.
    - `signed_speed`: the integral of the mean square of the K-th derivative's entries
        from the initial time to this one, which is negative where a solve runs
        backwards. Its absolute value is the regularizer: read that through
        [`diffrax_speedreg.SpeedRegularizedTerm.split`][].
    """

    y: PyTree[Shaped[Array, "..."]]
    signed_speed: Shaped[Array, "..."]


class _SpeedVF(eqx.Module):
    y: VF
    speed: Inexact[Array, ""]


class _SpeedControl(eqx.Module):
    y: Control
    dt: RealScalarLike


class SpeedRegularizedTerm(dfx.AbstractTerm[_SpeedVF, _SpeedControl]):
    r"""Wraps a term, to integrate the speed regularizer beside its solution.

    For $\frac{\mathrm{d}y}{\mathrm{d}t} = f(t, y)$ this is the term of

    $$\frac{\mathrm{d}}{\mathrm{d}t} (y, r) = \left( f(t, y),\;
    \frac{1}{N} \left\lVert \frac{\mathrm{d}^K y}{\mathrm{d}t^K} \right\rVert^2
    \right),$$

    so that $r = R_K$, the integral of the mean square of the entries of the K-th total
    derivative. An adaptive solver of order $K$ takes steps in inverse proportion to
    that derivative's size, roughly: add $\lambda R_K$ to the loss, and the learned
    equation needs fewer evaluations to solve. $R_1$ is the kinetic energy.

    !!! example

        ```python
        term = dsr.SpeedRegularizedTerm(diffrax.ODETerm(field), order=3)
        controller = diffrax.PIDController(rtol=1e-6, atol=1e-6, norm=term.norm)
        sol = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, None, term.init(y0),
            stepsize_controller=controller,
        )
        ys, speed = term.split(sol.ys)
        ```

    Pass `norm=term.norm` to an adaptive step size controller. It looks at $y$ alone,
    and then the steps, and $y$, are those of a solve without the regularizer. Without
    it, steps are chosen to integrate $r$ accurately as well, which takes more of them.

    The regularizer is nonnegative in either direction of time. A batch that is one
    state and `jax.vmap` over its samples give the same mean.

    **Cost:** an evaluation costs about `order` of the wrapped vector field's.

    ??? cite "Reference"

        Kelly, Bettencourt, Johnson and Duvenaud, "Learning Differential Equations that
        are Easy to Solve", NeurIPS 2020. The mean over entries, where the paper has the
        sum of squares, is what its reference implementation computes.
    """

    term: dfx.AbstractTerm
    regularizer: AbstractRegularizer

    def __init__(
        self,
        term: dfx.AbstractTerm,
        order: int | None = None,
        *,
        regularizer: AbstractRegularizer | None = None,
    ):
        r"""**Arguments:**

        - `term`: the term to wrap, of the form $f(t, y, \text{args})\,\mathrm{d}t$.
        - `order`: $K$, at least 1; 3 if neither this nor a regularizer is given.
        - `regularizer`: what to integrate instead of `Speed(order)`.

        **Raises:**

        A `ValueError` for other terms, orders and regularizers, and if both an order
        and a regularizer are given.
        """
        check_time_driven(term)
        if not isinstance(regularizer, AbstractRegularizer | None):
            raise ValueError(
                "`regularizer` must be an `AbstractRegularizer`, such as `Speed(3)`, "
                f"or `None`, but got {regularizer!r}."
            )
        if order is not None and regularizer is not None:
            raise ValueError(
                f"Pass either `order={order}` or `regularizer={regularizer!r}`, not "
                f"both: the order is that of the regularizer `Speed({order})`."
            )
        if regularizer is None:
            regularizer = Speed(3 if order is None else order)
        self.term, self.regularizer = term, regularizer

    def init(self, y0: Y) -> SpeedState:
        """The augmented initial state, to pass to `diffrax.diffeqsolve`.

        **Arguments:**

        - `y0`: the initial state of the wrapped term: a pytree of floating-point or
            complex arrays. A `ValueError` is raised for others.

        **Returns:**

        The state with a regularizer of zero.
        """
        y0 = as_state(y0)
        # Complex if the state is: Diffrax's Runge-Kutta methods mix its leaves.
        complex_ = [x.dtype for x in jtu.tree_leaves(y0) if jnp.iscomplexobj(x)]
        dtype = complex_[0] if complex_ else real_dtype(y0)
        return SpeedState(y0, jnp.zeros((), dtype))

    def split(self, ys: SpeedState) -> tuple[PyTree[Array], Inexact[Array, "..."]]:
        """Takes augmented states apart.

        **Arguments:**

        - `ys`: augmented states, such as `solution.ys`, with any leading axes.

        **Returns:**

        The states of the wrapped term, and the regularizer up to each, nonnegative, in
        the units of the squared state divided by those of time to the power
        `2 * order - 1`. It is NaN where the state is.
        """
        _check_augmented(ys)
        return ys.y, nan_as(jnp.abs(jnp.real(ys.signed_speed)), ys.y)

    @staticmethod
    def norm(state: SpeedState | PyTree[Array]) -> Array:
        """The root mean square of the entries of `y`, as a norm for a step size
        controller, by which step sizes do not depend on the regularizer.

        **Arguments:**

        - `state`: something like the augmented state. (Of anything else, such as the
            larger state that `diffrax.BacksolveAdjoint` solves for with the same
            controller, it is the root mean square of all entries.)

        **Returns:**

        A nonnegative scalar.
        """
        return optx.rms_norm(state.y if isinstance(state, SpeedState) else state)

    def vf(self, t: RealScalarLike, y: SpeedState, args: Args) -> _SpeedVF:
        _check_augmented(y)
        vf, speed = self.regularizer.evaluate(self.term, t, y.y, args)
        return _SpeedVF(vf, speed.astype(y.signed_speed.dtype))

    def contr(self, t0: RealScalarLike, t1: RealScalarLike, **kwargs) -> _SpeedControl:
        return _SpeedControl(self.term.contr(t0, t1, **kwargs), t1 - t0)

    def prod(self, vf: _SpeedVF, control: _SpeedControl) -> SpeedState:
        # Bilinear, as every adjoint relies on: hence backwards in time the sign of the
        # integral is that of `dt`, and it is `split` that takes the absolute value.
        dt = jnp.asarray(control.dt, vf.speed.dtype)
        return SpeedState(self.term.prod(vf.y, control.y), vf.speed * dt)


SpeedRegularizedTerm.__init__.__doc__ = """**Arguments:**

- `term`: the term to regularize, of the form `f(t, y, args) dt`: `diffrax.ODETerm`, a
    `diffrax.MultiTerm` of these, a control made an ODE by `.to_ode()`, or your own.
- `order`: $K$, at least 1. For a solver of order $m$ the theory asks for $K = m$; lower
    ones are cheaper, and 2 and 3 are what the paper's released experiments use with a
    solver of order 5.
- `regularizer`: what to integrate instead of `Speed(order)`: any
    [`diffrax_speedreg.AbstractRegularizer`][], such as
    `Speed(1) + 0.1 * JacobianNorm.draw(key, y0)`.

A `ValueError` is raised for an order that is not a positive integer, for a term that is
driven by something other than time, and for anything but a regularizer.
"""


def _check_augmented(state: Any) -> None:
    if not isinstance(state, SpeedState):
        raise ValueError(
            "The state of a `SpeedRegularizedTerm` must be a `SpeedState`, but got "
            f"{eqx.tree_pformat(state)}. Pass `term.init(y0)` as the initial state."
        )
