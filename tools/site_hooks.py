"""Hooks of MkDocs: results and notebooks join the site, formulas become MathML.

Pages link to these as they lie in the repository, so that links work there too.
Browsers know MathML, and need nothing from elsewhere to show it.
"""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


_root = Path(__file__).parents[1]
_SHOWN = ("*.ipynb", "*.json", "*.md", "*.png", "*.txt")
_FOLDERS = ("benchmarks/results", "experiments/results", "notebooks")


# Before the plugin that makes pages of notebooks.
@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds results and notebooks, by the paths that they have in the repository."""
    for folder in _FOLDERS:
        for pattern in _SHOWN:
            for path in sorted((_root / folder).glob(pattern)):
                name = str(path.relative_to(_root))
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links that leave the folder of the documentation stay within the site: those to
    results and notebooks. Others, to scripts, become the path in the repository."""
    inside = re.compile(r"\]\(\.\./((?:(?:benchmarks|experiments)/results|notebooks)/)")
    markdown = inside.sub(r"](\1", markdown)
    return re.sub(r"\[([^\]]*)\]\(\.\./(?!\.)[^)]*\)", r"\1", markdown)


def on_page_content(page_html: str, **_: object) -> str:
    """What `pymdownx.arithmatex` has marked becomes MathML."""

    def formula(match: re.Match[str]) -> str:
        tag, tex = match.groups()
        display = "block" if tag == "div" else "inline"
        # Without the delimiters.
        mathml = convert(html.unescape(tex.strip())[2:-2], display=display)
        return f'<{tag} class="arithmatex">{mathml}</{tag}>'

    marked = r'<(span|div) class="arithmatex">(.*?)</\1>'
    return re.sub(marked, formula, page_html, flags=re.DOTALL)
