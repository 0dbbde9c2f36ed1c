"""The reference pages: all public names, with explanations of their arguments."""

import inspect
import re
from pathlib import Path

import diffrax_speedreg as dsr
import pytest


_root = Path(__file__).parents[1]
_pages = sorted((_root / "docs" / "api").glob("*.md"))
_entries = [
    name
    for page in _pages
    for name in re.findall(r"^::: diffrax_speedreg\.(.*)$", page.read_text(), re.M)
]
_public = {name: getattr(dsr, name) for name in dir(dsr) if name[0] != "_"}
for space in ("rules", "training"):
    module = getattr(dsr, space)
    _public |= {f"{space}.{n}": getattr(module, n) for n in dir(module) if n[0] != "_"}
_public = {n: value for n, value in _public.items() if not inspect.ismodule(value)}


def test_every_public_name_has_one_entry():
    assert sorted(_entries) == sorted(_public)


def test_every_page_is_in_the_navigation():
    navigation = (_root / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": (\S+\.md)$", navigation, re.M)
    pages = [
        page.relative_to(_root / "docs") for page in (_root / "docs").rglob("*.md")
    ]
    home = "index.md"  # It is made of the README.
    assert sorted(listed) == sorted([*map(str, pages), home])


def _documented():
    """Lists functions, constructors, and methods on the pages, by name."""
    for page in _pages:
        for entry in page.read_text().split("::: diffrax_speedreg.")[1:]:
            name, options = entry.split("\n", 1)
            value = _public[name]
            if inspect.isfunction(value):
                yield name, value
            if not inspect.isclass(value) or issubclass(value, Exception):
                continue
            listed = re.search(r"members: \[(.*)\]", options)
            members = listed[1].split(", ") if listed else ["__init__"]
            yield from (
                (f"{name}.{member}", getattr(value, member)) for member in members
            )


@pytest.mark.parametrize("name", [name for name, _ in _documented()])
def test_docstring_explains_all_arguments(name):
    member = dict(_documented())[name]
    text = inspect.getdoc(member) or ""
    if name.endswith(".__init__"):
        # The class of a dataclass explains its fields.
        text += inspect.getdoc(_public[name.removesuffix(".__init__")]) or ""
    assert text
    if isinstance(member, property) or member is object.__init__:
        return
    arguments = [*inspect.signature(member).parameters]
    own = {"self", "cls", "kwargs"}
    missing = [x for x in arguments if x not in own and f"`{x}`" not in text]
    assert missing == []
