"""Writes `docs/coverage.md`, the functions whose expansions the tests check."""

from pathlib import Path

from tests.helpers.table import TABLE, UNDIFFERENTIABLE


PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"

HEAD = """# Functions in a vector field

Every function that `jax.jvp` can differentiate has a Taylor expansion of any order. The
tests expand vector fields that contain these {number} functions, of the state and of
time. They compare the coefficients with nested `jax.jvp`:

- up to order 5, or up to order 3 or 4 where nested `jax.jvp` takes too long to compile;
- in float64 to 2e-12 of the largest entry, or less precisely where a function amplifies
    rounding errors;
- and in float32.

The tests leave out functions that a release of JAX does not have. `python -m
tools.coverage` writes this page from the table of the tests.
"""

NOTE = """??? note "{title}: {number}"

    {names}.
"""

TAIL = """## Not differentiable

JAX has no derivative of these functions, or not in this form, so they have no
expansion. The error names the primitive and the line of the call.

"""


def page() -> str:
    parts = [HEAD.format(number=sum(map(len, TABLE.values())))]
    parts += [_note(title, entries) for title, entries in TABLE.items()]
    parts.append(TAIL + _note("Functions", UNDIFFERENTIABLE))
    return "\n".join(parts)


def _note(title: str, entries: dict) -> str:
    """Makes a block that the reader can unfold, with the names of the functions."""
    names = ", ".join(f"`{name}`" for name in entries)
    return NOTE.format(title=title, number=len(entries), names=names)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
