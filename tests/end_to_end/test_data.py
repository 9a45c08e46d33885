"""Rows from a user's files all the way into a run: bad ones stop it at once, mixtures and dynamic sampling show in its records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from grpo.errors import DataError
from grpo.recipe import run_recipe
from tests.end_to_end.conftest import Grpo, rows_of

TWO_STAGES = """
name: two
model: {{path: {model}}}
template: plain
data: {{good: {{jsonl: good.jsonl}}, bad: {{jsonl: bad.jsonl}}}}
stages:
  - {{name: first, kind: sft, data: good}}
  - {{name: second, kind: sft, data: bad}}
"""


def test_a_bad_row_of_a_later_stage_ends_a_run_before_anything_is_loaded_or_written(tmp_path: Path, tiny_qwen2: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_STAGES.format(model=tiny_qwen2))
    (tmp_path / "good.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": 7}\n{"prompt"\n')
    with pytest.raises(DataError) as raised:
        run_recipe(str(tmp_path / "two.yaml"), out=tmp_path / "run")
    assert [line.strip().removeprefix(str(tmp_path)) for line in str(raised.value).splitlines()] == [
        "data source 'bad': 2 problems, and no row was used; mend these rows or delete them:",
        "/bad.jsonl:3: not JSON (Expecting ':' delimiter at column 10)",
        "/bad.jsonl:2: column 'completion' must be text or a list of messages, found int 7",
    ]
    assert not (tmp_path / "run").exists()


REWARD = """
def letters(completion: str, data_source: str) -> float:
    # all samples of an even prompt are alike, so its groups teach nothing
    return 1.0 if data_source == "dull" else float(sum(map(ord, completion)) % 7)
"""


@pytest.mark.slow
def test_dull_groups_are_replaced_and_every_prompt_is_counted(grpo: Grpo, small_rl: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text(REWARD)
    for name in ("dull", "lively"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"{name} {i}", "answer": "1"}) + "\n" for i in range(20)))
    small_rl.write_text(small_rl.read_text().replace("data:\n", "data:\n  dull: {jsonl: dull.jsonl}\n  lively: {jsonl: lively.jsonl}\n"))
    out = tmp_path / "run"
    ran = grpo(
        "run",
        small_rl,
        "stages.reason.prompts=[{use: dull, weight: 1}, {use: lively, weight: 1}]",
        f"stages.reason.rewards=[{{use: '{tmp_path}/letters.py:letters'}}]",
        "stages.reason.dynamic_sampling={max_rounds: 5}",
        "stages.reason.steps=3",
        "canary=''",
        "--out",
        out,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    metrics, samples = (rows_of(out / "01-reason" / f"{name}.jsonl") for name in ("metrics", "samples"))
    used = [row for row in samples if not row.get("replaced")]
    assert len(used) == 3 * 4 * 4
    assert {row["prompt"].split()[0] for row in used} == {"lively"}
    assert {row["prompt"].split()[0] for row in samples if row.get("replaced")} >= {"dull"}
    consumed = metrics[-1]["data/prompts_consumed"]
    groups = Counter((row["step"], row["prompt_id"]) for row in samples)
    assert len(groups) == consumed and set(groups.values()) == {4}
    assert len({prompt for _, prompt in groups}) == consumed  # fewer than 40 in all, so none came twice
    assert all(row["rollout/groups_unfilled"] == 0 and row["rollout/rounds"] > 1 for row in metrics)
