"""Hooks of MkDocs that add the README, results, notebooks and MathJax to the site.

Pages link to each other by their paths in the repository, so that links work there too.
The site has a copy of MathJax, since its pages load nothing from elsewhere.
"""

import importlib.resources
import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


_root = Path(__file__).parents[1]
_SHOWN = ("*.ipynb", "*.json", "*.md", "*.png", "*.txt")
_FOLDERS = ("benchmarks/results", "experiments/results", "notebooks")
# Links and images, but not those to other sites. Some are to folders of results.
_LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:)([\w./-]+(?:\.\w+|/results))(#[\w-]+|)\)")
# Where lines may break in names: before capitals, and after separators.
_BREAK = re.compile(r"(?<=[a-z]{2})(?=[A-Z][a-z])|(?<=[A-Za-z)]{3}[./_])(?=[A-Za-z_])")
_CELL = re.compile(r"(?<=<t[dh]>).*?(?=</t[dh]>)", re.DOTALL)
_NUMBER = re.compile(r"\b[\d.]+e-\d+\b")
# The package is named after Django, but does not depend on it.
_MATHJAX = importlib.resources.files("mathjax") / "static" / "mathjax" / "es5"


# This runs before the plugin that makes pages of notebooks.
@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README as the home page, results and notebooks, and MathJax."""
    home = str(_root / "README.md")
    files.append(File.generated(config, "index.md", abs_src_path=home))
    for folder in _FOLDERS:
        for pattern in _SHOWN:
            for path in sorted((_root / folder).glob(pattern)):
                name = str(path.relative_to(_root))
                files.append(File.generated(config, name, abs_src_path=str(path)))
    with importlib.resources.as_file(_MATHJAX) as folder:
        fonts = folder.glob("output/chtml/fonts/woff-v2/*.woff")
        for path in (folder / "tex-chtml.js", *fonts):
            name = f"mathjax/{path.relative_to(folder)}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Adapts links to the site, and inserts the alternative texts of notebooks.

    Links to scripts and folders, which are not part of the site, become their text.
    """
    uri = page.file.src_uri
    if uri.endswith(".ipynb"):
        markdown = _with_alternative_texts(markdown, _root / uri)
    if uri == "index.md":
        folder = ""
    elif uri.startswith(_FOLDERS):
        folder = posixpath.dirname(uri)
    else:
        folder = posixpath.dirname(f"docs/{uri}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        path = path.removeprefix("docs/")
        if files.get_file_from_path(path) is None:
            return text
        return f"[{text}]({posixpath.relpath(path, posixpath.dirname(uri))}{anchor})"

    return _LINK.sub(link, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Lets lines break in long names, and in names but not numbers of tables."""

    def text(match: re.Match[str]) -> str:
        broken = _BREAK.sub("<wbr>", match.group())
        return _NUMBER.sub(r'<span class="number">\g<0></span>', broken)

    def cell(match: re.Match[str]) -> str:
        return re.sub(r"(?<![^>])[^<]+", text, match.group())

    def code(match: re.Match[str]) -> str:
        return re.sub(r"\S{36,}", lambda m: _BREAK.sub("<wbr>", m[0]), match.group())

    return re.sub(r"(?<=<code>)[^<]+", code, _CELL.sub(cell, html))


def _with_alternative_texts(markdown: str, notebook: Path) -> str:
    """Inserts the texts that the cells of a notebook have in their metadata."""
    for cell in json.loads(notebook.read_text())["cells"]:
        if "alt" in cell["metadata"]:
            text = f"![{cell['metadata']['alt']}]("
            markdown = markdown.replace("![img](", text, 1)
    return markdown
