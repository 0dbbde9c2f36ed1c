"""Which rule expands which primitive."""

from collections.abc import Callable, Sequence
from typing import final, TypeAlias

import equinox as eqx
import jax.extend.core as jex

from .operation import Operation
from .series import Recurrence, Series


# Makes the recurrence that gives the outputs of an operation, from its inputs.
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
    r"""How a primitive acts on power series.

    A primitive $v = p(u)$ needs no rule if JAX can differentiate it forwards: its
    expansion then follows from its JVP rule. A rule is worth its lines where there is a
    shorter recurrence for the coefficients $v_k$.

    !!! example

        The convolution `convolve_p` of two arrays is linear in each of them, so that
        $v_k = \sum_j a_j * b_{k - j}$. There is a ready-made rule for this,

        ```python
        dsr.rules.register(convolve_p, dsr.rules.bilinear)
        ```

        which could be written as

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

    - `recurrence`: a function `(operation, inputs, outputs) -> coefficients`, from the
        operation (the primitive, its parameters, the shapes and dtypes of its inputs
        and outputs) and the [`diffrax_speedreg.rules.Series`][] of its inputs and
        outputs. `coefficients(k)` returns the list of the k-th coefficients of all
        outputs, `None` for those that are zero, from the coefficients $0, \ldots, k$ of
        the inputs and $0, \ldots, k - 1$ of the outputs. It is called once for each $k
        \geq 1$, in order; for $k = 0$ the primitive itself is. Instead of
        `coefficients`, `None` says that there is no recurrence for these parameters,
        and that the JVP rule is to be used.
    - `is_zero`: whether the output is zero by structure, from the list of those truths
        about the inputs of inexact dtype: `any` for a product, `all` for a sum.
    - `constants`: a function `(operation, inputs) -> list[bool]` that says which of the
        outputs have no coefficients above order 0. By default all, if this is so for
        all of the inputs, else none.
    """

    recurrence: MakeRecurrence
    is_zero: Callable[[Sequence[bool]], bool] = _never
    constants: Callable[[Operation, Sequence[Series]], list[bool]] = _if_inputs_are


_rules: dict[jex.Primitive, Rule] = {}
# For primitives that JAX has no public name for, or other ones in other releases.
_rules_by_name: dict[str, Rule] = {}


def register(primitive: jex.Primitive | str, rule: Rule) -> None:
    """Expands a primitive by a rule from now on.

    The library's own rules are registered in the same way. A rule that there is already
    is replaced; what was traced or compiled before keeps it.

    **Arguments:**

    - `primitive`: a `jax.extend.core.Primitive`, or the name of one, for those that
        cannot be imported.
    - `rule`: a [`diffrax_speedreg.rules.Rule`][].

    **Raises:**

    A `TypeError` for anything else.
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
