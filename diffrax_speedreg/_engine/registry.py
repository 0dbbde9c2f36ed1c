"""Registry of the rules that expand primitives."""

from collections.abc import Callable, Sequence
from typing import final, TypeAlias

import equinox as eqx
import jax.extend.core as jex

from .operation import Operation
from .series import Recurrence, Series


# A function that makes the recurrence for the outputs of an operation.
MakeRecurrence: TypeAlias = Callable[
    [Operation, Sequence[Series], Sequence[Series]], Recurrence | None
]


def _never(zeros: Sequence[bool]) -> bool:
    del zeros
    return False


def _if_inputs_are(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    return [all(s.constant for s in inputs)] * len(operation.outs)


@final
class Rule(eqx.Module):
    r"""Rule that expands a primitive in power series.

    Write one only for a primitive $v = p(u)$ without a JVP rule, or if there is a
    recurrence for the coefficients $v_k$ that is cheaper than its JVP rule. The library
    has rules for linear and for bilinear primitives.

    !!! example

        The convolution `convolve_p` of two arrays is bilinear, so that $v_k = \sum_j
        a_j * b_{k - j}$. Register the rule for bilinear primitives,

        ```python
        dsr.rules.register(convolve_p, dsr.rules.bilinear)
        ```

        which is equivalent to

        ```python
        def recurrence(operation, inputs, outputs):
            a, b = inputs

            def product(a, b):
                return operation.bind(a, b)[0]

            def coefficients(order):
                return [dsr.rules.cauchy_product(product, a, b, order)]

            return coefficients

        dsr.rules.register(convolve_p, dsr.rules.Rule(recurrence, is_zero=any))
        ```

    **Arguments:**

    - `recurrence`: a function `(operation, inputs, outputs) -> coefficients` of an
        [`diffrax_speedreg.rules.Operation`][], the list of the
        [`diffrax_speedreg.rules.Series`][] of its inputs, and that of its outputs.
        `coefficients(k)` returns the list of the k-th coefficients of the outputs, with
        `None` for zeros. It may use the coefficients $0, \ldots, k$ of the inputs and
        $0, \ldots, k - 1$ of the outputs. It is called once for each $k \geq 1$, in
        order. For $k = 0$ the primitive is evaluated. If `recurrence` returns `None`,
        the JVP rule is used.
    - `is_zero`: a function `list[bool] -> bool`. The list says which inputs of inexact
        dtype are symbolic zeros. The result says whether the outputs are. Pass `any`
        for a product, and `all` for a sum.
    - `constants`: a function `(operation, inputs) -> list[bool]` that says which
        outputs have no coefficients above order 0. By default, these are all outputs if
        no input has such coefficients, and none otherwise.
    """

    recurrence: MakeRecurrence
    is_zero: Callable[[Sequence[bool]], bool] = _never
    constants: Callable[[Operation, Sequence[Series]], list[bool]] = _if_inputs_are


_rules: dict[jex.Primitive, Rule] = {}
# For primitives without a public name in JAX, or with one that depends on the release.
_rules_by_name: dict[str, Rule] = {}


def register(primitive: jex.Primitive | str, rule: Rule) -> None:
    """Registers the rule by which a primitive is expanded.

    It replaces an earlier rule of the primitive. Functions that are already traced or
    compiled keep the earlier rule.

    **Arguments:**

    - `primitive`: a `jax.extend.core.Primitive`, or its name if it can't be imported.
    - `rule`: a [`diffrax_speedreg.rules.Rule`][].

    **Raises:**

    A `TypeError` if `primitive` or `rule` is of another type.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"Expected a `diffrax_speedreg.rules.Rule`, but got {rule!r}.")
    if isinstance(primitive, jex.Primitive):
        _rules[primitive] = rule
    elif isinstance(primitive, str):
        _rules_by_name[primitive] = rule
    else:
        raise TypeError(
            "Expected a `jax.extend.core.Primitive` or the name of one, but got "
            f"{primitive!r}. A Python function is expanded as it is, and given another "
            "derivative by `jax.custom_jvp`."
        )


def rule_for(primitive: jex.Primitive) -> Rule | None:
    return _rules.get(primitive) or _rules_by_name.get(primitive.name)
