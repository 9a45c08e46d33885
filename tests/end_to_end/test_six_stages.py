"""The demo's recipe, all six stages with the real engines, cut down to a minute."""

from __future__ import annotations

import json
from pathlib import Path

from tests.end_to_end.conftest import Grpo, rows_of

SHORT = [
    "model.pretrain_updates=20",
    "evaluation.rows=32",
    "stages.cold_start.epochs=1",
    "stages.reason.steps=2",
    "stages.reason.warmup_updates=1",
    "stages.harvest.rows=40",
    "stages.harvest.keep.min_reward.math=0",
    "stages.harvest.keep.min_reward.format=0",
    "stages.sft.epochs=1",
    "stages.final.steps=1",
    "stages.final.warmup_updates=1",
    "stages.student.from.pretrain_updates=20",
    "stages.student.rows=40",
    "stages.student.epochs=1",
    "stages.student.keep.min_reward.math=0",
    "stages.student.keep.min_reward.format=0",
]


def test_the_demo_runs_through_all_six_stages(grpo: Grpo, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = grpo("run", "r1_tiny", *SHORT, "--out", out, env={"GRPO_CACHE": str(tmp_path / "cache")})
    assert result.returncode == 0, result.stdout + result.stderr

    summary = json.loads((out / "summary.json").read_text())
    assert [(stage["name"], stage["kind"], stage["from"]) for stage in summary["stages"]] == [
        ("cold_start", "sft", "base"),
        ("reason", "rl", "cold_start"),
        ("harvest", "reject", "reason"),
        ("sft", "sft", "base"),  # R1's second fine-tuning starts again from the base model
        ("final", "rl", "sft"),
        ("student", "distill", "tiny_llama"),
    ]
    assert {stage["status"] for stage in summary["stages"]} == {"complete"}
    by_name = {stage["name"]: stage["metrics"] for stage in summary["stages"]}
    assert by_name["sft"]["eval/accuracy_before"] == by_name["cold_start"]["eval/accuracy_before"]
    assert by_name["reason"]["eval/accuracy_before"] == by_name["cold_start"]["eval/accuracy_after"]

    harvested = rows_of(out / "03-harvest" / "data" / "rows.jsonl")
    assert {row["source"] for row in harvested} == {"harvest", "general"}
    assert json.loads((out / "03-harvest" / "data" / "provenance.json").read_text())["model"] == "reason"
    assert json.loads((out / "06-student" / "model" / "config.json").read_text())["model_type"] == "llama"
