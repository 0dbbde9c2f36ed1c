"""Counts turns of phrase that make the prose hard to read, and fails if there are many.

Looks at the README, the pages, the notebooks, and the docstrings and comments of all
code. Prints each turn that is not allowed, with its place.
"""

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[1]
CODE = ("diffrax_speedreg", "experiments", "benchmarks", "tools", "tests")
# Pages that are written by scripts, or quote papers.
WRITTEN = ("docs/results.md", "docs/coverage.md", "docs/jobs.md")
# The largest rate of "what ..." in place of a noun, in 1000 words.
MOST_NOUN_CLAUSES = 1.0
NOUN_CLAUSE = re.compile(r"\b[Ww]hat (?:is|are|was|were|has|have|it|they|a|an|the)\b")
BANNED = re.compile(r"\b(?:anew|dear|dearer|torn|told|alongside of)\b")
# Matches a docstring whose first sentence is a fragment.
FRAGMENT = re.compile(r"^(?:What|Of|That|Whether|How|As|By|For|In|With|From)\b[^,:]*\.")


def _of_module(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yields docstrings and comments: line, text, and whether it is a docstring."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and (doc := ast.get_docstring(node)):
            yield node.body[0].lineno, doc, True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def passages() -> Iterator[tuple[str, str, bool]]:
    """Yields the place and text of all passages, and whether each is a docstring."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    for path in pages:
        name = str(path.relative_to(ROOT))
        if name not in WRITTEN:
            prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
            yield name, prose, False
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                yield path.name, "".join(cell["source"]), False
    for folder in CODE:
        for path in sorted(ROOT.glob(f"{folder}/**/*.py")):
            name = str(path.relative_to(ROOT))
            for line, text, is_docstring in _of_module(path):
                yield f"{name}:{line}", text, is_docstring


def counts() -> tuple[float, list[str], list[str]]:
    """Counts noun clauses in 1000 words, and lists these and the turns not allowed."""
    words, clauses, found = 0, [], []
    for place, text, is_docstring in passages():
        words += len(text.split())
        clauses += [f"{place}: {match}" for match in NOUN_CLAUSE.findall(text)]
        found += [f"{place}: {match}" for match in BANNED.findall(text)]
        if is_docstring and FRAGMENT.match(text.split("\n\n")[0].replace("\n", " ")):
            found.append(f"{place}: {text.splitlines()[0]}")
    return 1000 * len(clauses) / words, clauses, found


def main() -> None:
    rate, clauses, found = counts()
    print(*clauses, *found, f"noun clauses in 1000 words: {rate:.2f}", sep="\n")
    sys.exit(bool(found) or rate > MOST_NOUN_CLAUSES)


if __name__ == "__main__":
    main()
