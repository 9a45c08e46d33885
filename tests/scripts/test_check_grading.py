"""check_grading.py counts what it should on labelled pairs, and names the gold answers that can't be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_grading.py"


def told(file: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    result = subprocess.run([sys.executable, SCRIPT, file, *arguments, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stdout


@pytest.fixture
def rows(tmp_path: Path):
    def write(*rows: Any) -> Path:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


def test_labelled_pairs_are_counted_beside_math_verify(rows) -> None:
    pairs = [("2ab", "2ba", 1), ("2ab", "2", 0), ("9t", "9", 0), ("5", "6", 1), ("7", "7.0", 0)]  # the last two labels are wrong
    found, _ = told(rows(*[{"gold": gold, "answer": answer, "label": label} for gold, answer, label in pairs]))
    ours = found["graders"]["math"]
    assert (ours["agreement"], ours["wrong_paid"], ours["right_not_paid"], ours["abstained"]) == (0.6, 1, 1, 0)
    assert found["graders"]["math-verify, plain"]["wrong_paid"] == 3  # to it, ab and t are units
    assert set(found["graders"]) == {"math", "math-verify, plain", "math-verify, boxed"}


def test_without_labels_unreadable_gold_answers_are_told_by_kind(rows) -> None:
    golds = ["7", None, "What is it?", "nobody knows", "\x0crac{1}{2}", "so 3\n#### 3", ["1", "2"]]
    found, said = told(rows(*[{"solution": gold} for gold in golds]), "--gold", "solution")
    assert found["rows"] == 7 and found["unreadable"] == 4
    assert found["kinds"]["is empty"] == found["kinds"]["is a question"] == found["kinds"]["says no value"] == 1
    assert "3 of 7 gold answers can be read" in said and "has lost a backslash" in said


def test_gold_answers_are_reworded_and_damaged(rows) -> None:
    found, _ = told(rows({"answer": "x=3, x=5"}, {"answer": r"\frac{3}{7}"}, {"answer": "12"}), "--gold", "answer", "--reword", "--alone")
    assert found["pairs"] > 30 and found["graders"]["math"]["agreement"] == 1


def test_a_broken_file_is_told_with_every_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"gold": 1}\n[2]\nno\n', encoding="utf-8")
    result = subprocess.run([sys.executable, SCRIPT, file], capture_output=True, text=True, timeout=60, check=False)
    assert (
        result.returncode == 1 and "rows.jsonl:2: not a JSON object" in result.stderr and "rows.jsonl:3: not a JSON object" in result.stderr
    )
