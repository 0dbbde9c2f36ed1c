"""Writes `docs/coverage.md`, the functions whose expansions the tests check."""

from pathlib import Path

from tests.helpers.table import TABLE, UNDIFFERENTIABLE


PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"

HEAD = """# What a vector field may consist of

Whatever `jax.jvp` can differentiate has a Taylor expansion, of any order: by a rule for
the primitive where there is a cheap one, and else by way of its JVP rule. The tests
expand vector fields made of these {number} functions, of states and time mixed, and
compare with nested `jax.jvp`: coefficients up to order 5 in float64 to 2e-12 of the
largest entry (up to order 3 or 4 where nesting takes too long to compile, and more
coarsely where a function amplifies rounding errors), and in float32. Functions that a
release of JAX does not have are left out there. Written by `python -m tools.coverage`.
"""

TAIL = """## Not differentiable

JAX has no derivative of these, or none of that, and so they have no expansion either.
That is an error which names the primitive and the line where it is called:

{names}.
"""


def page() -> str:
    parts = [HEAD.format(number=sum(map(len, TABLE.values())))]
    for title, entries in TABLE.items():
        parts.append(f"## {title}\n\n{_names(entries)}.\n")
    parts.append(TAIL.format(names=_names(UNDIFFERENTIABLE)))
    return "\n".join(parts)


def _names(entries: dict) -> str:
    return ", ".join(f"`{name}`" for name in entries)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
