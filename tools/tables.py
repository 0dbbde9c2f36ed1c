"""Tables in Markdown, for the pages that scripts write."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Makes a table whose columns are aligned."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |"
        for line in lines
    )
