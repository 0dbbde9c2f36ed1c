from collections.abc import Sequence
from typing import Any, final

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.extend.source_info_util import SourceInfo, summarize
from jaxtyping import Array


def avals(atoms: Sequence[jex.Var | jex.Literal]) -> list[jax.ShapeDtypeStruct]:
    """What is known of the values of variables before they exist."""
    shaped: list[Any] = [atom.aval for atom in atoms]
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in shaped]


def is_mutable(*atoms: jex.Var | jex.Literal) -> bool:
    """Whether there are references to arrays among them, as those of `jax.new_ref`."""
    shaped: list[Any] = [atom.aval for atom in atoms]
    return any(getattr(aval, "inner_aval", None) for aval in shaped)


def literal_value(literal: jex.Literal) -> np.ndarray:
    (aval,) = avals([literal])
    return np.asarray(literal.val, aval.dtype)


@final
class Operation:
    """A JAX primitive with its parameters and the shapes that it maps between.

    **Attributes:**

    - `primitive`: the `jax.extend.core.Primitive`.
    - `params`: its parameters, a dictionary.
    - `ins`, `outs`: `jax.ShapeDtypeStruct`s of its inputs and outputs.
    - `source`: where the user called it.
    """

    __slots__ = ("primitive", "params", "ins", "outs", "source")

    def __init__(
        self,
        primitive: jex.Primitive,
        params: dict[str, Any],
        ins: Sequence[jax.ShapeDtypeStruct],
        outs: Sequence[jax.ShapeDtypeStruct],
        source: SourceInfo,
    ):
        self.primitive = primitive
        self.params = params
        self.ins = ins
        self.outs = outs
        self.source = source

    @classmethod
    def from_equation(
        cls, eqn: jex.JaxprEqn, source: SourceInfo | None = None
    ) -> "Operation":
        """`source`, if the equation is not the user's, but derived from one."""
        source = source or eqn.source_info
        if is_mutable(*eqn.invars, *eqn.outvars):
            # What happens to these depends on an order that recurrences do not keep.
            raise NotImplementedError(
                f"A vector field with mutable arrays, such as at {summarize(source)}, "
                "has no Taylor expansion. Use `x.at[...].set(...)` instead of a "
                "`jax.new_ref`."
            )
        ins, outs = avals(eqn.invars), avals(eqn.outvars)
        return cls(eqn.primitive, eqn.params, ins, outs, source)

    def replace(self, **params: Any) -> "Operation":
        """The same with some `params` in place of its own."""
        params = self.params | params
        return Operation(self.primitive, params, self.ins, self.outs, self.source)

    def bind(self, *args: Array) -> list[Array]:
        """Evaluates the primitive at `args`; returns the list of its outputs."""
        bind_params = self.primitive.get_bind_params(self.params)
        # A dictionary from JAX 0.9.2, a pair before.
        subfuns, params = (
            ([], bind_params) if isinstance(bind_params, dict) else bind_params
        )
        out = self.primitive.bind(*subfuns, *args, **params)
        return list(out) if self.primitive.multiple_results else [out]

    def jvp_jaxpr(
        self, primals: Sequence[Array], active: Sequence[bool]
    ) -> jex.ClosedJaxpr:
        """The operation's JVP rule as a jaxpr: from its inputs, and tangents for those
        that are `active`, to its outputs, and tangents for those of inexact dtype.

        `primals` are only looked at for what JAX's types know beyond shape and dtype,
        such as how they are distributed over devices.
        """

        def jvp(primals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
            def restricted(*active_primals: Array) -> list[Array]:
                rest = iter(active_primals)
                return self.bind(
                    *(next(rest) if a else p for a, p in zip(active, primals))
                )

            active_primals = [p for a, p in zip(active, primals) if a]
            out, out_tangents = jax.jvp(restricted, active_primals, list(tangents))
            inexact = [jnp.issubdtype(aval.dtype, jnp.inexact) for aval in self.outs]
            # Some of JAX's rules return tangents that are NumPy arrays.
            tangents_out = [jnp.asarray(t) for i, t in zip(inexact, out_tangents) if i]
            return [*out, *tangents_out]

        tangents = [p for a, p in zip(active, primals) if a]
        try:
            return jax.make_jaxpr(jvp)(primals, tangents)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise NotImplementedError(self._no_jvp_message(error)) from error

    def _no_jvp_message(self, error: Exception) -> str:
        return (
            f"The vector field has no Taylor expansion: `{self.primitive.name}`, at "
            f"{summarize(self.source)}, depends on the state or on time, and JAX "
            f"cannot differentiate it forwards ({type(error).__name__}: {error}). Give "
            "the function that calls it a derivative by `jax.custom_jvp`, or the "
            "primitive a rule by `diffrax_speedreg.rules.register`; or, if its "
            "derivative is to be zero, put `jax.lax.stop_gradient` around its "
            "arguments."
        )
