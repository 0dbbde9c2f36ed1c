"""Rules of function calls such as `jax.checkpoint`, which the expansions keep."""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.extend.core.primitives as jexp

from ..expand import as_closed
from ..operation import Operation
from ..registry import register, Rule
from ..series import Coefficient, Recurrence, Series
from ..subjaxprs import (
    Coefficients,
    coefficients_of,
    constant_outputs,
    expand_subjaxpr,
    interpret_subjaxpr,
    of_order,
)


def _checkpoint(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """Rule of `jax.checkpoint`.

    The backward pass computes the lower orders again too. This costs K (K + 1) / 2
    evaluations for K orders.
    """
    params = operation.params

    def recurrence(order: int) -> Sequence[Coefficient]:
        def expand(coefficients: list[Coefficients]) -> list[Coefficients]:
            subjaxpr = as_closed(params["jaxpr"])
            return expand_subjaxpr(operation, subjaxpr, coefficients, outputs, order)

        checkpoint = jax.checkpoint(
            expand, prevent_cse=params["prevent_cse"], policy=params["policy"]
        )
        coefficients = [coefficients_of(s, order) for s in inputs]
        return of_order(order, checkpoint(coefficients), outputs)

    return recurrence


def _expanded(operation: Operation, param: str, inputs: Sequence[Series]) -> Recurrence:
    """Expands the body of the function, a jaxpr in the parameter `param`."""

    @cache
    def series() -> list[Series]:
        return interpret_subjaxpr(operation, as_closed(operation.params[param]), inputs)

    return lambda order: [s.coefficient(order) for s in series()]


def _custom_vjp(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """Rule of `jax.custom_vjp`.

    There is no JVP rule, but the body of the function can be expanded. Its value, the
    zeroth coefficient, keeps the user's VJP rule.
    """
    del outputs
    return _expanded(operation, "call_jaxpr", inputs)


def _linear_call(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    """Rule of `jax.custom_derivatives.linear_call`.

    The JVP rule, which keeps the transpose, assumes that residuals are constants. If
    they vary, the function is expanded.
    """
    del outputs
    num_residuals = operation.params["num_callee_consts"] + operation.params["num_res"]
    if all(s.constant for s in inputs[:num_residuals]):
        return None
    return _expanded(operation, "callee", inputs)


def _constants(param: str) -> Callable[[Operation, Sequence[Series]], list[bool]]:
    """Makes the function `constants` of a rule.

    `param` is the name of the parameter that holds the function's jaxpr.
    """

    def constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
        subjaxpr = as_closed(operation.params[param])
        return constant_outputs(operation, subjaxpr, [s.constant for s in inputs])

    return constants


# These primitives have no public name.
register("linear_call", Rule(_linear_call))
register("remat2", Rule(_checkpoint, constants=_constants("jaxpr")))
register(jexp.custom_vjp_call_p, Rule(_custom_vjp, constants=_constants("call_jaxpr")))
