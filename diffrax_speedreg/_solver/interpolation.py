import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from equinox.internal import ω
from jaxtyping import Array, PyTree

from .._custom_types import Coefficients, RealScalarLike


def step_fraction(t: RealScalarLike, t0: RealScalarLike, t1: RealScalarLike) -> Array:
    """Computes the fraction of a step that ends at `t`; 0 for a step of size zero."""
    step = t1 - t0
    is_point = step == 0
    return jnp.where(is_point, 0, (t - t0) / jnp.where(is_point, 1, step))


class TaylorInterpolation(dfx.AbstractLocalInterpolation):
    r"""Polynomial $\sum_k c_k s^k$ in $s = (t - t_0) / (t_1 - t_0)$."""

    t0: RealScalarLike
    t1: RealScalarLike
    coefficients: Coefficients

    def evaluate(
        self, t0: RealScalarLike, t1: RealScalarLike | None = None, left: bool = True
    ) -> PyTree[Array]:
        """Evaluates the polynomial, as `diffrax.AbstractPath.evaluate` does."""
        if t1 is not None:
            return (self.evaluate(t1, left=left) ** ω - self.evaluate(t0) ** ω).ω
        s = step_fraction(t0, self.t0, self.t1)

        def polynomial(c: Array) -> Array:
            return jnp.polyval(c[::-1], s.astype(c.dtype))

        return jtu.tree_map(polynomial, self.coefficients)
