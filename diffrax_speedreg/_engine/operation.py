from collections.abc import Sequence
from typing import Any, final

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def avals(atoms: Sequence[jex.Var | jex.Literal]) -> list[jax.ShapeDtypeStruct]:
    """What is known of the values of variables before they exist."""
    shaped: list[Any] = [atom.aval for atom in atoms]
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in shaped]


def literal_value(literal: jex.Literal) -> np.ndarray:
    (aval,) = avals([literal])
    return np.asarray(literal.val, aval.dtype)


@final
class Operation:
    """A JAX primitive with its parameters and the shapes that it maps between."""

    __slots__ = ("primitive", "params", "ins", "outs")

    def __init__(
        self,
        primitive: jex.Primitive,
        params: dict[str, Any],
        ins: Sequence[jax.ShapeDtypeStruct],
        outs: Sequence[jax.ShapeDtypeStruct],
    ):
        self.primitive = primitive
        self.params = params
        self.ins = ins
        self.outs = outs

    @classmethod
    def from_equation(cls, eqn: jex.JaxprEqn) -> "Operation":
        return cls(eqn.primitive, eqn.params, avals(eqn.invars), avals(eqn.outvars))

    def replace(self, **params: Any) -> "Operation":
        return Operation(self.primitive, self.params | params, self.ins, self.outs)

    def bind(self, *args: Array) -> list[Array]:
        bind_params = self.primitive.get_bind_params(self.params)
        # A dictionary from JAX 0.9.2, a pair before.
        subfuns, params = (
            ([], bind_params) if isinstance(bind_params, dict) else bind_params
        )
        out = self.primitive.bind(*subfuns, *args, **params)
        return list(out) if self.primitive.multiple_results else [out]

    def jvp_jaxpr(self, active: Sequence[bool]) -> jex.ClosedJaxpr:
        """The operation's JVP rule as a jaxpr: from its inputs, and tangents for those
        that are `active`, to its outputs, and tangents for those of inexact dtype."""

        def jvp(primals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
            def restricted(*active_primals: Array) -> list[Array]:
                rest = iter(active_primals)
                return self.bind(
                    *(next(rest) if a else p for a, p in zip(active, primals))
                )

            active_primals = [p for a, p in zip(active, primals) if a]
            out, out_tangents = jax.jvp(restricted, active_primals, list(tangents))
            inexact = [jnp.issubdtype(aval.dtype, jnp.inexact) for aval in self.outs]
            return [*out, *(t for i, t in zip(inexact, out_tangents) if i)]

        tangents = [aval for a, aval in zip(active, self.ins) if a]
        return jax.make_jaxpr(jvp)(self.ins, tangents)
