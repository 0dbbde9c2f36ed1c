from collections.abc import Hashable, Mapping, Sequence
from typing import final

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.extend.source_info_util import SourceInfo
from jaxtyping import Array

from .operation import literal_value, Operation
from .registry import Rule, rule_for
from .series import (
    Coefficient,
    constant,
    derivative,
    Node,
    Recurrence,
    scale,
    Series,
    zeros,
)
from .structure import describe_literal, describe_operation, Identity, refers_to_itself


@final
class Expansion:
    r"""Interprets jaxprs on power series.

    An equation $v = p(u)$ gets its zeroth coefficient from the primitive $p$ itself,
    and the higher ones from a recurrence registered for $p$ or, where there is none,
    from its JVP rule: $v' = \partial p(u)\, u'$, so that

    $$v_k = [\partial p(u)\, u']_{k-1} / k.$$

    The right-hand side is a jaxpr too, and is interpreted in the same way. Equations
    that are met again are recognized ("hash-consing"), in particular $p(u)$ itself
    within its own derivative: for `tanh`, $v' = (1 - v^2)\, u'$ refers to $v$, and so
    the recurrence that one would write by hand falls out, at the price of the products
    in it.

    A function with a custom rule is taken at its rule's word: its derivative is what
    the rule says, also where the rule computes the function's value in another way, as
    those of straight-through estimators do.
    """

    def __init__(self, *, effects: bool = True) -> None:
        self._effects = effects
        self._equations: dict[Hashable, list[Series]] = {}
        self._constants: dict[Hashable, Series] = {}

    def interpret(
        self,
        closed: jex.ClosedJaxpr,
        inputs: Sequence[Series],
        *,
        tangent: bool = False,
        source: SourceInfo | None = None,
        known: Mapping[jex.Var, Series] | None = None,
    ) -> list[Series]:
        """The series of the outputs, for those of the inputs.

        With `tangent`, literal zeros are zeros by structure: a JVP rule has them in
        place of the tangents of what does not vary. The `source` is the user's line
        that the jaxpr belongs to, if it was derived from that. Variables that are
        `known` are not computed.
        """
        jaxpr = closed.jaxpr
        env = dict(known or {})
        consts = [self._constant(value) for value in closed.consts]
        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: jex.Var | jex.Literal) -> Series:
            if isinstance(atom, jex.Literal):
                return self._literal(atom, tangent)
            return env[atom]

        for eqn in jaxpr.eqns:
            if eqn.outvars and all(var in env for var in eqn.outvars):
                continue
            operation = Operation.from_equation(eqn, source)
            arguments = [read(atom) for atom in eqn.invars]
            if eqn.outvars:
                outputs = self._equation(operation, arguments, tangent)
                env.update(zip(eqn.outvars, outputs, strict=True))
            elif self._effects and not tangent:
                # Nobody will ask for what is only there for its effect: `jax.debug`.
                operation.bind(*(s.array(0) for s in arguments))
        return [read(atom) for atom in jaxpr.outvars]

    def _constant(self, value: Array | np.ndarray) -> Series:
        key = Identity(value)
        if key not in self._constants:
            self._constants[key] = constant(jnp.asarray(value))
        return self._constants[key]

    def _literal(self, literal: jex.Literal, tangent: bool) -> Series:
        value = literal_value(literal)
        inexact = jnp.issubdtype(value.dtype, jnp.inexact)
        vanishes = tangent and inexact and not value.any()
        key = describe_literal(literal), vanishes
        if key not in self._constants:
            series = constant(jnp.asarray(value))
            if vanishes:
                (series,) = zeros([series.aval], lambda: [jnp.asarray(value)])
            self._constants[key] = series
        return self._constants[key]

    def _equation(
        self, operation: Operation, inputs: list[Series], tangent: bool
    ) -> list[Series]:
        if (wrapped := wrapped_jaxpr(operation)) is not None:
            return self.interpret(
                wrapped, inputs, tangent=tangent, source=operation.source
            )
        rule = rule_for(operation.primitive)
        vanishing = [s.zero for s in inputs if s.inexact]
        if _vanishes(rule, vanishing):
            return zeros(
                operation.outs, lambda: operation.bind(*(s.primal() for s in inputs))
            )
        key = describe_operation(operation), tuple(map(Identity, inputs))
        if key not in self._equations:
            self._equations[key] = self._apply(operation, rule, inputs)
        return self._equations[key]

    def _apply(
        self, operation: Operation, rule: Rule | None, inputs: Sequence[Series]
    ) -> list[Series]:
        by_jvp: Recurrence | None = None

        def recurrence(order: int) -> Sequence[Coefficient]:
            nonlocal by_jvp
            if order == 0:
                missing = [s.coefficient(0) is None for s in inputs if s.inexact]
                if _vanishes(rule, missing):
                    return [None] * len(operation.outs)
                return operation.bind(*(s.array(0) for s in inputs))
            if by_rule is not None:
                return by_rule(order)
            if by_jvp is None:
                by_jvp = self._by_jvp(operation, inputs, outputs)
            return by_jvp(order)

        all_constant = all(s.constant for s in inputs)
        node = Node(
            inputs,
            recurrence,
            lambda: operation.bind(*(s.primal() for s in inputs)),
            constant=all_constant,
        )
        if all_constant or rule is None:
            constants = [all_constant] * len(operation.outs)
        else:
            constants = rule.constants(operation, inputs)
        outputs = [
            Series(node, i, aval, constant=is_constant)
            for i, (aval, is_constant) in enumerate(zip(operation.outs, constants))
        ]
        by_rule = None if rule is None else rule.recurrence(operation, inputs, outputs)
        return outputs

    def _by_jvp(
        self,
        operation: Operation,
        inputs: Sequence[Series],
        outputs: Sequence[Series],
    ) -> Recurrence:
        active = [not s.constant for s in inputs]
        primals = [s.array(0) for s in inputs]
        jvp_jaxpr = operation.jvp_jaxpr(primals, active)
        own = refers_to_itself(operation, primals, active, jvp_jaxpr)
        known = {} if own is None else dict(zip(own.outvars, outputs))
        tangents = [derivative(s) for s, a in zip(inputs, active) if a]
        results = self.interpret(
            jvp_jaxpr,
            [*inputs, *tangents],
            tangent=True,
            source=operation.source,
            known=known,
        )
        derivatives = iter(results[len(outputs) :])
        derivative_of = [next(derivatives) if s.inexact else None for s in outputs]

        def recurrence(order: int) -> Sequence[Coefficient]:
            return [
                None if d is None else scale(d.coefficient(order - 1), 1 / order)
                for d in derivative_of
            ]

        return recurrence


def _vanishes(rule: Rule | None, zeros: Sequence[bool]) -> bool:
    return rule is not None and any(zeros) and rule.is_zero(zeros)


# Equations that only wrap a jaxpr, and the parameter that holds it. By name, for the
# name is what has stayed the same over JAX's releases.
_wrappers = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}


def wrapped_jaxpr(operation: Operation) -> jex.ClosedJaxpr | None:
    """The jaxpr that the operation evaluates, if this is all that it does."""
    name = operation.primitive.name
    return as_closed(operation.params[_wrappers[name]]) if name in _wrappers else None


def as_closed(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    # From JAX 0.12 there is only one class of jaxprs, and it is the closed one.
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())
