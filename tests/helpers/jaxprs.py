from collections.abc import Iterator
from typing import Any

import jax.extend.core as jex
import jax.tree_util as jtu


def equations(jaxpr: Any) -> Iterator[jex.JaxprEqn]:
    """Yields the equations of a jaxpr, and of the jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for leaf in jtu.tree_leaves(eqn.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(leaf):
                yield from equations(getattr(leaf, "jaxpr", leaf))


def count_primitive(jaxpr: Any, name: str) -> int:
    return sum(eqn.primitive.name == name for eqn in equations(jaxpr))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)
