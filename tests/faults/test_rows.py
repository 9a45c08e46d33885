"""The table of faults has all of them, and names tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.rows import ROWS

ROOT = Path(__file__).parents[2]


def functions_in(file: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_all_faults_have_their_row_and_each_row_its_tests() -> None:
    assert [row.number for row in ROWS] == list(range(1, 45))
    missing = [node for row in ROWS for node in row.node_ids() if node.split("::")[1] not in functions_in(node.split("::")[0])]
    assert missing == []
    assert [row.number for row in ROWS if not row.tests or not all(row.tests.values())] == []
