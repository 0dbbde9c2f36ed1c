import abc
import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from equinox.internal import ω
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree, Real

from ._checks import as_state, check_like_state, check_positive_integer
from ._custom_types import Args, RealScalarLike, VF, Y
from ._misc import mean_square
from ._solution import solution_series, time_field


class AbstractRegularizer(eqx.Module):
    r"""Something nonnegative to integrate along a solution, and to add to a loss.

    There are three ways to integrate it, which can be exchanged for each other: beside
    the solution with [`diffrax_speedreg.SpeedRegularizedTerm`][], after the solve with
    a [`diffrax_speedreg.Quadrature`][], and, for the speed, at no cost inside of a
    [`diffrax_speedreg.TaylorLagrangeSolver`][].

    Weighted sums are regularizers too: `Speed(3) + 0.1 * JacobianNorm(noise)`.
    """

    @abc.abstractmethod
    def evaluate(
        self, term: dfx.AbstractTerm, t: RealScalarLike, y: PyTree[Array], args: Args
    ) -> tuple[VF, Real[Array, ""]]:
        """The integrand, and the vector field, which most need on the way.

        **Arguments:**

        - `term`: a term of the form `f(t, y, args) dt`.
        - `t`, `y`, `args`: where to evaluate: the time, the state, and the arguments of
            the vector field.

        **Returns:**

        `term.vf(t, y, args)`, and the integrand, a nonnegative real scalar.
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


class Speed(AbstractRegularizer):
    r"""The speed regularizer $R_K$.

    Its integrand is the mean square of the entries of the K-th total derivative,

    $$\frac{1}{N} \left\lVert \frac{\mathrm{d}^K y}{\mathrm{d}t^K} \right\rVert^2$$

    over the N entries of all leaves of the state together, in the units of the squared
    state divided by those of time to the power $2K$. `Speed(1)` is the kinetic energy.

    **Arguments:**

    - `order`: $K$, at least 1. A `ValueError` is raised for anything else.

    **Cost:** an evaluation costs about K of the vector field's.

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
        series = solution_series(term, t, y, args)
        factorial = float(math.factorial(self.order))
        derivative = (series.coefficient(self.order) ** ω * factorial).ω
        return series.aux, mean_square(derivative)


class JacobianNorm(AbstractRegularizer):
    r"""An estimate of the size of the vector field's Jacobian.

    Its integrand is the mean square of the entries of $\epsilon^\top \partial f /
    \partial y$, whose expectation over the noise $\epsilon$ is the squared Frobenius
    norm of the Jacobian, divided by the number of entries of the state.

    The noise stays the same during a solve, so that the integrand is smooth: draw it
    anew for every solve, by [`diffrax_speedreg.JacobianNorm.draw`][].

    **Arguments:**

    - `noise`: $\epsilon$: a pytree like the state, whose entries are independent, of
        mean 0 and variance 1. Those of complex leaves have independent real and
        imaginary parts of variance 1/2, which counts half the squared norm of the
        Jacobian with respect to both parts: for a holomorphic field, that of its
        complex Jacobian.

    **Cost:** an evaluation costs about three of the vector field's.

    ??? cite "Reference"

        Finlay, Jacobsen, Nurbekyan and Oberman, "How to Train Your Neural ODE: the
        World of Jacobian and Kinetic Regularization", ICML 2020. Use it as they do,
        together with the kinetic energy, `Speed(1)`. They draw normal noise; the signs
        drawn here give the same mean with less variance.
    """

    noise: PyTree[Array]

    @classmethod
    def draw(cls, key: PRNGKeyArray, y0: Y) -> "JacobianNorm":
        """Draws random signs.

        **Arguments:**

        - `key`: a `jax.random` key; a new one for every solve.
        - `y0`: the state, for its structure, shapes and dtypes.

        **Returns:**

        The regularizer with that noise.
        """
        leaves, structure = jtu.tree_flatten(as_state(y0))
        keys = jr.split(key, len(leaves))
        noise = [_signs(k, x) for k, x in zip(keys, leaves)]
        return cls(jtu.tree_unflatten(structure, noise))

    def evaluate(
        self, term: dfx.AbstractTerm, t: RealScalarLike, y: PyTree[Array], args: Args
    ) -> tuple[VF, Real[Array, ""]]:
        check_like_state(self.noise, y, "The noise of `JacobianNorm`")
        field = time_field(term, y, args)
        _, pullback, vf = jax.vjp(lambda y: field(t, y), y, has_aux=True)
        (product,) = pullback(self.noise)
        return vf, mean_square(product)


def _signs(key: PRNGKeyArray, like: Array) -> Array:
    """Random signs; of both parts of a complex number, for the modulus 1."""
    if not jnp.iscomplexobj(like):
        return jr.rademacher(key, like.shape).astype(like.dtype)
    dtype = jnp.finfo(like.dtype).dtype
    real, imag = jr.rademacher(key, (2, *like.shape)).astype(dtype)
    return lax.complex(real, imag) / math.sqrt(2)


class WeightedSum(AbstractRegularizer):
    r"""$\sum_i w_i R_i$, as made by `+` and `*`.

    **Attributes:**

    - `regularizers`: the regularizers $R_i$, at least one.
    - `weights`: as many weights $w_i$.
    """

    regularizers: tuple[AbstractRegularizer, ...]
    weights: tuple[RealScalarLike, ...]

    def evaluate(
        self, term: dfx.AbstractTerm, t: RealScalarLike, y: PyTree[Array], args: Args
    ) -> tuple[VF, Real[Array, ""]]:
        vfs, values = zip(*(r.evaluate(term, t, y, args) for r in self.regularizers))
        weighted = [jnp.asarray(w, v.dtype) * v for w, v in zip(self.weights, values)]
        return vfs[0], jnp.sum(jnp.stack(weighted))
