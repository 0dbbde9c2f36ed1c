import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from equinox.internal import ω
from jaxtyping import Array, PyTree

from .._custom_types import Coefficients, RealScalarLike


class TaylorInterpolation(dfx.AbstractLocalInterpolation):
    r"""The polynomial $\sum_k c_k s^k$ in $s = (t - t_0) / (t_1 - t_0)$."""

    t0: RealScalarLike
    t1: RealScalarLike
    coefficients: Coefficients

    def evaluate(
        self, t0: RealScalarLike, t1: RealScalarLike | None = None, left: bool = True
    ) -> PyTree[Array]:
        """As `diffrax.AbstractPath.evaluate`."""
        if t1 is not None:
            return (self.evaluate(t1, left=left) ** ω - self.evaluate(t0) ** ω).ω
        step = self.t1 - self.t0
        is_point = step == 0
        s = jnp.where(is_point, 0, (t0 - self.t0) / jnp.where(is_point, 1, step))

        def polynomial(c: Array) -> Array:
            return jnp.polyval(c[::-1], s.astype(jnp.finfo(c.dtype).dtype))

        return jtu.tree_map(polynomial, self.coefficients)
