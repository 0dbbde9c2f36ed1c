import abc
import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree, Real

from ._checks import (
    as_state,
    check_key,
    check_like_state,
    check_positive_integer,
    check_real_scalar,
)
from ._custom_types import Args, RealScalarLike, VF, Y
from ._misc import mean_square
from ._solution import derivative_and_field, unit_control, vector_field


class AbstractRegularizer(eqx.Module):
    r"""Abstract base class for regularizers: nonnegative functions of $(t, y)$ that are
    integrated along the solution.

    Start with [`diffrax_speedreg.DerivativeNorm`][], and pass it to
    [`diffrax_speedreg.regularized_solve`][]. Weighted sums are regularizers too:
    `DerivativeNorm(3) + 0.1 * JacobianNorm(noise)`. To write a regularizer, subclass
    this class and implement `evaluate`.
    """

    @abc.abstractmethod
    def evaluate(
        self, term: dfx.AbstractTerm, t: RealScalarLike, y: PyTree[Array], args: Args
    ) -> tuple[VF, Real[Array, ""]]:
        """Computes the vector field and the integrand at a point.

        **Arguments:**

        - `term`: the term of the solve, of the form `f(t, y, args) dt`.
        - `t`: the time, a scalar.
        - `y`: the state, a pytree of arrays.
        - `args`: the arguments of the vector field.

        **Returns:**

        A pair: `term.vf(t, y, args)`, which most regularizers need anyway, and the
        integrand, a nonnegative real scalar.
        """

    def __add__(self, other: "AbstractRegularizer") -> "WeightedSum":
        if not isinstance(other, AbstractRegularizer):
            return NotImplemented
        return WeightedSum((self, other), (1.0, 1.0))

    def __mul__(self, weight: RealScalarLike) -> "WeightedSum":
        if isinstance(weight, AbstractRegularizer):
            return NotImplemented
        return WeightedSum((self,), (weight,))

    def __rmul__(self, weight: RealScalarLike) -> "WeightedSum":
        return self * weight


class DerivativeNorm(AbstractRegularizer):
    r"""Regularizer $R_K$: the mean square of the K-th time derivative of the solution.

    Start with $K = 3$. An order above that of the solver does not affect the step
    sizes. Smaller orders are cheaper, and $K = 2$ or 3 already gives most of the gain
    with a fifth-order solver. `DerivativeNorm(1)` is the kinetic energy.

    The integrand is

    $$\frac{1}{N} \left\lVert \frac{\mathrm{d}^K y}{\mathrm{d}t^K} \right\rVert^2,$$

    a mean over the $N$ entries of all leaves of the state. Its units are those of the
    squared state divided by those of time to the power $2K$.

    **Arguments:**

    - `order`: $K$, a positive integer.

    **Raises:**

    A `ValueError` if `order` is not a positive integer.

    **Cost:** about K vector field evaluations for each evaluation.

    ??? cite "Reference"

        Kelly, Bettencourt, Johnson and Duvenaud, "Learning Differential Equations that
        are Easy to Solve", NeurIPS 2020. The mean over entries, where the paper has the
        sum of squares, is what its reference implementation computes.
    """

    order: int = eqx.field(static=True, default=3)

    def __check_init__(self):
        check_positive_integer(self.order, "order")

    def evaluate(
        self, term: dfx.AbstractTerm, t: RealScalarLike, y: PyTree[Array], args: Args
    ) -> tuple[VF, Real[Array, ""]]:
        derivative, vf = derivative_and_field(term, t, y, args, self.order)
        return vf, mean_square(derivative)


class JacobianNorm(AbstractRegularizer):
    r"""Regularizer that estimates the Frobenius norm of the vector field's Jacobian.

    Use it with the kinetic energy, as RNODE does: `DerivativeNorm(1) +
    JacobianNorm.draw(key, y0)`. Draw new noise for every solve. The noise is constant
    during a solve, so that the integrand is smooth.

    The integrand is the mean square of the entries of $\epsilon^\top \partial f /
    \partial y$. Its expectation over the noise $\epsilon$ is the squared Frobenius norm
    of the Jacobian, divided by the number of entries of the state.

    **Arguments:**

    - `noise`: $\epsilon$, a pytree like the state. Its entries are independent, with
        mean 0 and variance 1. Entries of complex leaves have independent real and
        imaginary parts of variance 1/2. For a holomorphic vector field, the estimate is
        then that of the complex Jacobian.

    **Cost:** about three vector field evaluations for each evaluation.

    ??? cite "Reference"

        Finlay, Jacobsen, Nurbekyan and Oberman, "How to Train Your Neural ODE: the
        World of Jacobian and Kinetic Regularization", ICML 2020. They draw normal
        noise. Random signs have the same mean and less variance.
    """

    noise: PyTree[Array]

    @classmethod
    def draw(cls, key: PRNGKeyArray, y0: Y) -> "JacobianNorm":
        """Makes the regularizer with random signs as its noise.

        **Arguments:**

        - `key`: a `jax.random` key. Use a new key for every solve.
        - `y0`: a state, whose structure, shapes and dtypes the noise gets.

        **Returns:**

        A `JacobianNorm`.
        """
        check_key(key)
        leaves, structure = jtu.tree_flatten(as_state(y0))
        keys = jr.split(key, len(leaves))
        noise = [_signs(k, x) for k, x in zip(keys, leaves)]
        return cls(jtu.tree_unflatten(structure, noise))

    def evaluate(
        self, term: dfx.AbstractTerm, t: RealScalarLike, y: PyTree[Array], args: Args
    ) -> tuple[VF, Real[Array, ""]]:
        check_like_state(self.noise, y, "The noise of `JacobianNorm`")
        field = vector_field(term, args, unit_control(term, y), has_aux=True)
        _, pullback, vf = jax.vjp(lambda y: field(t, y), y, has_aux=True)
        (product,) = pullback(self.noise)
        return vf, mean_square(product)


def _signs(key: PRNGKeyArray, like: Array) -> Array:
    """Draws random signs.

    A complex number has signs for both parts, and the modulus 1.
    """
    if not jnp.iscomplexobj(like):
        return jr.rademacher(key, like.shape).astype(like.dtype)
    dtype = jnp.finfo(like.dtype).dtype
    real, imag = jr.rademacher(key, (2, *like.shape)).astype(dtype)
    return lax.complex(real, imag) / math.sqrt(2)


class WeightedSum(AbstractRegularizer):
    r"""Weighted sum $\sum_i w_i R_i$ of regularizers, as made by `+` and `*`.

    **Attributes:**

    - `regularizers`: the regularizers $R_i$, at least one.
    - `weights`: as many weights $w_i$.
    """

    regularizers: tuple[AbstractRegularizer, ...]
    weights: tuple[RealScalarLike, ...]

    def __check_init__(self):
        if len(self.weights) != len(self.regularizers) or not self.regularizers:
            raise ValueError(
                "A weighted sum needs one weight for each of at least one regularizer, "
                f"but got {len(self.regularizers)} regularizers and "
                f"{len(self.weights)} weights. Make it by `+` and `*`."
            )
        for weight in self.weights:
            check_real_scalar(weight, "weight")

    def evaluate(
        self, term: dfx.AbstractTerm, t: RealScalarLike, y: PyTree[Array], args: Args
    ) -> tuple[VF, Real[Array, ""]]:
        vfs, values = zip(*(r.evaluate(term, t, y, args) for r in self.regularizers))
        weighted = [jnp.asarray(w, v.dtype) * v for w, v in zip(self.weights, values)]
        return vfs[0], jnp.sum(jnp.stack(weighted))
