from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import final

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
import jax.numpy as jnp
import numpy as np
from jax.extend.source_info_util import SourceInfo
from jaxtyping import Array

from .fingerprint import (
    Identity,
    literal_fingerprint,
    operation_fingerprint,
    self_call,
)
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


@final
class Expansion:
    r"""Interprets jaxprs on power series.

    An equation $v = p(u)$ gets its zeroth coefficient from the primitive $p$ itself,
    and the higher ones from a recurrence registered for $p$ or, where there is none,
    from its JVP rule: $v' = \partial p(u)\, u'$, so that

    $$v_k = [\partial p(u)\, u']_{k-1} / k.$$

    The right-hand side is a jaxpr too, and is interpreted in the same way. Equations
    that occur again are recognized ("hash-consing"). In particular this holds for
    $p(u)$ itself within its own derivative: for `tanh`, $v' = (1 - v^2)\, u'$ refers to
    $v$. The result is the recurrence that one would write by hand, and costs only the
    products in it.

    The derivative of a function with a custom rule is the one that the rule gives. This
    holds even if the rule computes the function's value in another way, as those of
    straight-through estimators do. If the rule raises an error, the body of the
    function is expanded.

    The coefficients of `stop_gradient(u)` are those of `u`, each of them stopped, too:
    the solution of an equation does not depend on it. With `stops`, `stop_gradient(u)`
    is constant, as it is for derivatives of a function.

    **Attributes:**

    - `one_sided`: whether the expansion used a value that jumps in time; such values
        are taken just after $s = 0$.
    """

    def __init__(self, *, effects: bool = True, stops: bool = False) -> None:
        self._effects = effects
        self._stops = stops
        self.one_sided = False
        self._outputs: dict[Hashable, list[Series]] = {}
        self._constants: dict[Hashable, Series] = {}

    def interpret(
        self,
        closed: jex.ClosedJaxpr,
        inputs: Sequence[Series],
        *,
        tangent: bool = False,
        source: SourceInfo | None = None,
        bound: Mapping[jex.Var, Series] | None = None,
    ) -> list[Series]:
        """Computes the series of the outputs from those of the inputs.

        With `tangent`, literal zeros are symbolic zeros: a JVP rule has them as the
        tangents of constants. The `source` is the line of the user's code from which
        the jaxpr was derived, if any. Variables that are `bound` to series are not
        computed.
        """
        jaxpr = closed.jaxpr
        env = dict(bound or {})
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
            operation = Operation.from_equation(eqn, source, self._stops)
            arguments = [read(atom) for atom in eqn.invars]
            if eqn.outvars:
                outputs = self._apply(operation, arguments, tangent)
                env.update(zip(eqn.outvars, outputs, strict=True))
            elif self._effects and not tangent:
                # An equation without outputs is there for its effect: `jax.debug`.
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
        zero = tangent and inexact and not value.any()
        key = literal_fingerprint(literal), zero
        if key not in self._constants:
            series = constant(jnp.asarray(value))
            if zero:
                (series,) = zeros([series.aval], lambda: [jnp.asarray(value)])
            self._constants[key] = series
        return self._constants[key]

    def _apply(
        self, operation: Operation, inputs: Sequence[Series], tangent: bool
    ) -> list[Series]:
        if (jaxpr := wrapped_jaxpr(operation)) is not None:
            return self.interpret(
                jaxpr, inputs, tangent=tangent, source=operation.source
            )
        rule = rule_for(operation.primitive)
        if rule is None and any(s.stopped for s in inputs):
            inputs = _ignoring_stopped(operation, inputs)
        if _vanishes(rule, [s.zero for s in inputs if s.inexact]):
            return zeros(
                operation.outs, lambda: operation.bind(*(s.primal() for s in inputs))
            )
        key = operation_fingerprint(operation), tuple(map(Identity, inputs))
        if key not in self._outputs:
            self._outputs[key] = _Equation(self, operation, rule, inputs).outputs
        return self._outputs[key]


@final
@dataclass(slots=True, eq=False)
class _Equation:
    """An operation on series.

    Its higher coefficients come from its rule. Without a rule they come from its JVP
    rule, which is interpreted only when they are needed.
    """

    expansion: Expansion
    operation: Operation
    rule: Rule | None
    inputs: Sequence[Series]
    outputs: list[Series] = field(init=False)
    # The values just after s = 0, if the inputs depend only on time.
    just_after: Callable[[], Sequence[Array]] | None = field(init=False, default=None)
    higher: Recurrence | None = field(init=False, default=None)

    def __post_init__(self):
        operation, rule, inputs = self.operation, self.rule, self.inputs
        all_constant = all(s.constant for s in inputs)
        if all_constant or rule is None:
            constants = [all_constant] * len(operation.outs)
        else:
            constants = rule.constants(operation, inputs)
        node = Node(inputs, self.coefficients, self.primals, constant=all_constant)
        varying = [s for s in inputs if not s.constant]
        stopped = operation.primitive is jexp.stop_gradient_p or (
            bool(varying) and all(s.stopped for s in varying)
        )
        shifts = [s.shifted is not None for s in varying]
        if any(shifts) and all(shifts):
            self.just_after = cache(
                lambda: operation.bind(*(s.just_after() for s in inputs))
            )
        self.outputs = [
            Series(
                node,
                i,
                aval,
                constant=is_constant,
                stopped=stopped,
                shifted=None if self.just_after is None else partial(self._shifted, i),
            )
            for i, (aval, is_constant) in enumerate(zip(operation.outs, constants))
        ]
        if rule is not None:
            self.higher = rule.recurrence(operation, inputs, self.outputs)

    def coefficients(self, order: int) -> Sequence[Coefficient]:
        if order == 0:
            return self.values()
        if self.higher is None:
            self.higher = self.by_jvp()
        return self.higher(order)

    def _shifted(self, index: int) -> Array:
        assert self.just_after is not None
        return self.just_after()[index]

    def values(self) -> Sequence[Coefficient]:
        if self.just_after is not None and _is_piecewise_constant(self.operation):
            self.expansion.one_sided = True
            return self.just_after()
        absent = [s.coefficient(0) is None for s in self.inputs if s.inexact]
        if _vanishes(self.rule, absent):
            return [None] * len(self.outputs)
        return self.operation.bind(*(s.array(0) for s in self.inputs))

    def primals(self) -> list[Array]:
        return self.operation.bind(*(s.primal() for s in self.inputs))

    def by_jvp(self) -> Recurrence:
        active = [not s.constant for s in self.inputs]
        primals = [s.array(0) for s in self.inputs]
        try:
            jvp_jaxpr = self.operation.jvp_jaxpr(primals, active)
        except NotImplementedError:
            if not _has_function(self.operation):
                raise
            return self.by_function()
        call = self_call(self.operation, primals, active, jvp_jaxpr)
        results = self.expansion.interpret(
            jvp_jaxpr,
            [*self.inputs, *(derivative(s) for s in self.inputs if not s.constant)],
            tangent=True,
            source=self.operation.source,
            bound={} if call is None else dict(zip(call.outvars, self.outputs)),
        )
        tangents = iter(results[len(self.outputs) :])
        derivatives = [next(tangents) if s.inexact else None for s in self.outputs]
        return lambda order: [
            None if d is None else scale(d.coefficient(order - 1), 1 / order)
            for d in derivatives
        ]

    def by_function(self) -> Recurrence:
        function = as_closed(self.operation.params["call_jaxpr"])
        outputs = self.expansion.interpret(
            function, self.inputs, source=self.operation.source
        )
        return lambda order: [s.coefficient(order) for s in outputs]


def _has_function(operation: Operation) -> bool:
    """Returns whether an operation can be expanded without a JVP rule.

    These are `custom_jvp` functions whose rule raises an error, as that of
    `equinox.internal.nondifferentiable` does. Such a rule forbids derivatives; the
    solution does not have any if its inputs went through `stop_gradient`.
    """
    return operation.primitive is jexp.custom_jvp_call_p and not operation.stops


def _is_piecewise_constant(operation: Operation) -> bool:
    """Returns whether the values jump, as those of comparisons and `floor` do."""
    integers = not any(jnp.issubdtype(out.dtype, jnp.inexact) for out in operation.outs)
    return integers or operation.primitive in _jumping


_jumping = {jexp.ceil_p, jexp.floor_p, jexp.rem_p, jexp.round_p, jexp.sign_p}


def _ignoring_stopped(
    operation: Operation, inputs: Sequence[Series]
) -> Sequence[Series]:
    """Returns the inputs, with constants for those that JAX stops because its rule has
    no derivative with respect to them.

    A linear solve gets a matrix and its factors. Its derivative is the one with respect
    to the matrix.
    """
    ignored = range(len(inputs))
    if _has_function(operation):
        return inputs
    if operation.primitive is jexp.linear_solve_p:
        # The factorization of the matrix and the solve, but not the product with it.
        lengths = operation.params["const_lengths"]
        others = lengths.vecmat + lengths.solve + lengths.transpose_solve
        ignored = range(lengths.matvec, lengths.matvec + others)
    else:
        try:
            operation.jvp_jaxpr(
                [s.array(0) for s in inputs], [not s.constant for s in inputs]
            )
            return inputs
        except NotImplementedError:
            pass
    return [
        constant(s.array(0)) if s.stopped and i in ignored else s
        for i, s in enumerate(inputs)
    ]


def _vanishes(rule: Rule | None, zeros: Sequence[bool]) -> bool:
    return rule is not None and any(zeros) and rule.is_zero(zeros)


# Equations that only wrap a jaxpr, and the parameter that holds it. They are looked up
# by name, since the names are the same in all releases of JAX.
_wrappers = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}


def wrapped_jaxpr(operation: Operation) -> jex.ClosedJaxpr | None:
    """Returns the jaxpr that the operation evaluates, if it does nothing else."""
    name = operation.primitive.name
    return as_closed(operation.params[_wrappers[name]]) if name in _wrappers else None


def as_closed(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    # From JAX 0.12 on there is only one class of jaxprs, the closed one.
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())
