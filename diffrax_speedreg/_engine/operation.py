from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.extend.source_info_util import SourceInfo, summarize
from jaxtyping import Array


def avals(atoms: Sequence[jex.Var | jex.Literal]) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of variables."""
    shaped: list[Any] = [atom.aval for atom in atoms]
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in shaped]


def is_mutable(*atoms: jex.Var | jex.Literal) -> bool:
    """Returns whether some of them are references to arrays, as from `jax.new_ref`."""
    shaped: list[Any] = [atom.aval for atom in atoms]
    return any(getattr(aval, "inner_aval", None) for aval in shaped)


def literal_value(literal: jex.Literal) -> np.ndarray:
    (aval,) = avals([literal])
    return np.asarray(literal.val, aval.dtype)


# The errors of JVP rules that do not support all tangents.
_failures = AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError


@final
@dataclass(slots=True, eq=False)
class Operation:
    """JAX primitive with its parameters, and with the shapes of its inputs and outputs.

    **Attributes:**

    - `primitive`: the `jax.extend.core.Primitive`.
    - `params`: its parameters, a dictionary.
    - `ins`: the `jax.ShapeDtypeStruct`s of its inputs.
    - `outs`: the `jax.ShapeDtypeStruct`s of its outputs.
    - `source`: the place of the call in the user's code.
    - `stops`: if `True`, `stop_gradient` makes its argument a constant, as in
        derivatives.
    """

    primitive: jex.Primitive
    params: dict[str, Any]
    ins: Sequence[jax.ShapeDtypeStruct]
    outs: Sequence[jax.ShapeDtypeStruct]
    source: SourceInfo
    stops: bool = False

    @classmethod
    def from_equation(
        cls, eqn: jex.JaxprEqn, source: SourceInfo | None = None, stops: bool = False
    ) -> "Operation":
        """Makes an operation from an equation of a jaxpr.

        The `source` is passed if the equation is not the user's, but derived from one.
        """
        source = source or eqn.source_info
        if is_mutable(*eqn.invars, *eqn.outvars):
            # Effects on references depend on an order that recurrences do not keep.
            raise NotImplementedError(
                f"A vector field with mutable arrays, such as at {summarize(source)}, "
                "has no Taylor expansion. Use `x.at[...].set(...)` instead of a "
                "`jax.new_ref`."
            )
        ins, outs = avals(eqn.invars), avals(eqn.outvars)
        return cls(eqn.primitive, eqn.params, ins, outs, source, stops)

    def replace(self, **params: Any) -> "Operation":
        """Returns a copy with other values of the parameters in `params`."""
        return replace(self, params=self.params | params)

    def bind(self, *args: Array) -> list[Array]:
        """Evaluates the primitive at `args`, and returns the list of its outputs."""
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
        """Returns the operation's JVP rule as a jaxpr.

        Its inputs are those of the operation, and tangents for those that are `active`.
        Its outputs are those of the operation, and tangents for those of inexact dtype.

        The `primals` are only used for the parts of their JAX types other than shape
        and dtype, such as their distribution over devices.
        """

        def jvp(primals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
            def function(*active_primals: Array) -> list[Array]:
                rest = iter(active_primals)
                return self.bind(
                    *(next(rest) if a else p for a, p in zip(active, primals))
                )

            active_primals = [p for a, p in zip(active, primals) if a]
            out, out_tangents = jax.jvp(function, active_primals, list(tangents))
            inexact = [jnp.issubdtype(aval.dtype, jnp.inexact) for aval in self.outs]
            # Some of JAX's rules return tangents that are NumPy arrays.
            tangents_out = [jnp.asarray(t) for i, t in zip(inexact, out_tangents) if i]
            return [*out, *tangents_out]

        tangents = [p for a, p in zip(active, primals) if a]
        try:
            return jax.make_jaxpr(jvp)(primals, tangents)
        except _failures as error:
            raise NotImplementedError(self._no_jvp_message(error)) from error

    def _no_jvp_message(self, error: Exception) -> str:
        return (
            f"The vector field has no Taylor expansion: `{self.primitive.name}`, at "
            f"{summarize(self.source)}, depends on the state or on time, and JAX "
            f"cannot differentiate it forwards ({type(error).__name__}: {error}). Give "
            "the function that calls it a derivative by `jax.custom_jvp`, or the "
            "primitive a rule by `diffrax_speedreg.rules.register`."
        )
