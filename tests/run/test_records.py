"""A log is cut back to what a checkpoint knows of it, and never filled up with what nobody wrote."""

from __future__ import annotations

from pathlib import Path

from grpo.run.records import JsonLines, read_jsonl_rows


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "metrics.jsonl") as log:
        log.write({"step": 1})
        known = log.num_bytes
        log.write({"step": 2, "text": "\u00e4"})
    with JsonLines(tmp_path / "metrics.jsonl") as log:
        assert log.cut(known) == 0
        log.write({"step": 2})
    assert read_jsonl_rows(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_log_that_lost_its_end_is_not_filled_up(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "metrics.jsonl") as log:
        log.write({"step": 1})
        known = log.num_bytes
    (tmp_path / "metrics.jsonl").unlink()
    with JsonLines(tmp_path / "metrics.jsonl") as log:
        assert log.cut(known) == known
        log.write({"step": 2})
    assert read_jsonl_rows(tmp_path / "metrics.jsonl") == [{"step": 2}]
