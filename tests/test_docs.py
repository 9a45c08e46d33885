"""Does what the documentation points at exist, and does it become a site that needs nobody else's server?"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from grpo.algorithm import TABLE
from grpo.config.key_reference import recipe_json_schema
from rewards import SHIPPED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMING_FROM = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")


def text_of(page: Path) -> str:
    """Without code, in which brackets are no links."""
    return re.sub(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if "://" not in target and not (there.exists() and (not anchor or anchor in anchors_of(there))):
            dead.append(target)
    assert dead == []


def test_every_page_is_in_a_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^[a-z-]+$", "".join(re.findall(r"```\{toctree\}.*?```", index, flags=re.S)), flags=re.M)
    assert sorted([*listed, "index"]) == sorted(page.stem for page in (ROOT / "docs").glob("*.md"))


def keys_of(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from keys_of(value)


def rows_under(heading: str) -> list[tuple[str, str]]:
    """The first two columns of the first table under a heading."""
    _, _, rest = COMING_FROM.partition(f"## {heading}\n")
    table = re.search(r"(?:^\|.*\n)+", rest, flags=re.M)
    assert table is not None
    return [tuple(row.split("|")[1:3]) for row in table[0].splitlines()[2:]]  # type: ignore[misc]


@pytest.mark.parametrize("toolkit", ["TRL", "verl", "open-r1"])
def test_what_settings_are_here_called_is_so(toolkit: str) -> None:
    known = {*keys_of(recipe_json_schema()), *SHIPPED}
    named = re.findall(r"`([^`]+)`", " ".join(ours for _, ours in rows_under(toolkit)))
    assert len(named) > 10
    unknown = [name for name in named if name.partition(": ")[0] not in known and not name.startswith("grpo ")]
    assert [name for name in unknown if toolkit != "open-r1" or name not in {"sft", "distill", "reject"}] == []
    variants = [name.partition(": ")[2] for name in named if name.startswith("algorithm: ")]
    assert [variant for variant in variants if variant not in TABLE] == []


def test_what_settings_are_called_in_trl_is_so() -> None:
    trl = pytest.importorskip("trl")
    known = {*(field.name for field in fields(trl.GRPOConfig)), *signature(trl.GRPOTrainer).parameters}
    named = re.findall(r"`([^`]+)`", " ".join(theirs for theirs, _ in rows_under("TRL")))
    assert len(named) > 40
    assert [name for name in named if name not in known] == []


def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "site"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").glob("*.html"))
    assert {"index.html", "start.html", "api.html"} <= {page.name for page in pages}
    loads = re.compile(
        r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//[^\"']*|(?:url\(|@import )[\"']?https?://[^\s\"')]*"
    )
    files = [*pages, *(tmp_path / "site" / "_static").rglob("*.css")]
    assert [(file.name, found) for file in files for found in loads.findall(file.read_text(encoding="utf-8"))] == []
