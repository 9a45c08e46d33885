"""Sphinx configuration: `make docs` builds docs/ as a site without a network; the same files can be read in the repository."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from grpo import __version__  # noqa: E402

project = "grpo-toolkit"
author = "the authors of grpo-toolkit"
copyright = "the authors of grpo-toolkit, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["html_image"]
autodoc_typehints = "none"
autodoc_preserve_defaults = True
smartquotes = False
autodoc_member_order = "bysource"
default_role = "code"
highlight_language = "none"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_title = f"grpo-toolkit {version}"
html_show_sphinx = False
html_copy_source = False

PAGE_OF = {
    "README.md": "index.md",
    "recipes/README.md": "recipes.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
COLUMNS = re.compile(r"(\S+(?: \S+)?) {2,}(\S.*)")
LINK = re.compile(r"\[([^\]\[]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def linked_from_docs(text: str, folder: Path) -> str:
    """The text of a file of ``folder`` with links as a page of docs/ has them: pages to pages, files to download, folders by name only."""

    def there(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath(folder / target))
        if "://" in target or not path.exists():
            return match[0]
        if path.is_dir():
            return f"`{path.relative_to(ROOT)}/`"
        page = PAGE_OF.get(path.relative_to(ROOT).as_posix()) or os.path.relpath(path, ROOT / "docs")
        return f"[{words}]({page}{anchor})"

    return LINK.sub(there, text)


def _page(app, docname: str, source: list[str]) -> None:
    source[0] = linked_from_docs(source[0], ROOT / "docs")


def _included(app, path: Path, docname: str, content: list[str]) -> None:
    folder = (ROOT / "docs" / path).resolve().parent
    text = linked_from_docs(content[0], folder)
    content[0] = text.replace('<img src="docs/', '<img src="') if folder == ROOT else text


def _docstring(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    lines[:] = as_restructured_text(lines)


def as_restructured_text(docstring: list[str]) -> list[str]:
    """Our docstrings are plain text. A line of two columns becomes a definition, with the indented lines that carry it on; the rest is prose."""
    written: list[str] = []
    for line in docstring:
        if columns := COLUMNS.fullmatch(line):
            written += ["", f"``{columns[1]}``", f"    {escaped(columns[2])}"]
        elif line.startswith(" ") and written and written[-1].startswith(" "):
            written.append("    " + escaped(line.strip()))
        else:
            written += [""] * (bool(written) and written[-1].startswith(" ")) + [escaped(line)]
    return [*written, ""]


def escaped(text: str) -> str:
    """Characters that mean something in reStructuredText stand for themselves, but for what is quoted as code."""
    pieces = re.split(r"(``.*?``)", text)
    return "".join(piece if piece.startswith("``") else re.sub(r"([*|_\\])", r"\\\1", piece) for piece in pieces)


def setup(app) -> None:
    app.connect("source-read", _page)
    app.connect("include-read", _included)
    app.connect("autodoc-process-docstring", _docstring)
