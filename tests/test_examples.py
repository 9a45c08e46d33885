"""Every example runs, and shows what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(example: str, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / example), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout


def test_grpo_in_100_lines_learns() -> None:
    lines = run("01_grpo_in_100_lines.py", "--steps", 60).splitlines()
    first, last = (float(line.split()[3]) for line in (lines[0], lines[-1]))
    assert first < 0.1
    assert last > 0.4


def test_custom_reward() -> None:
    assert run("02_custom_reward.py").split() == "9 tokens: 1.0 11 tokens: 0.0 cut off: None math: 1.0".split()


def test_custom_variant_is_not_moved_by_an_outlier() -> None:
    ranks = run("03_custom_variant.py").splitlines()[1]
    assert json.loads(ranks.removeprefix("ranks:")) == [[-1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("group", "expected"), [(0, "What is 1?"), (1, "What is 2?")])
def test_looking_into_a_group(tmp_path: Path, group: int, expected: str) -> None:
    rows = [
        {
            "step": 1,
            "prompt_id": f"q/{i}",
            "prompt": f"What is {i}?",
            "answer": str(i),
            "text": text,
            "finish": "stop",
            "completion_tokens": 3,
        }
        | {"reward": reward, "parts": {"math": reward}, "advantage": 2 * reward - 1, "version": 0}
        for i in (1, 2)
        for text, reward in (("right", 1.0), ("wrong", 0.0))
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = run("04_looking_into_a_group.py", tmp_path, "--group", group)
    assert expected in shown
    assert shown.index("right") < shown.index("wrong")
