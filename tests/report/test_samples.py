"""Few samples stand for many: the ends are always among them, the rest lie at equal distances, and no more than needed stay in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.report.formatting import tagged
from grpo.report.jsonl_index import Lines
from grpo.report.samples import NUM_MOMENTS, Spaced, read_samples
from tests.report.conftest import NAUGHTY, rl_samples, write_lines


@given(number=st.integers(1, 3000), limit=st.integers(2, 12))
def test_spaced_items_hold_both_ends_and_lie_at_equal_distances(number: int, limit: int) -> None:
    spaced: Spaced[int] = Spaced(limit)
    for item in range(number):
        spaced.put(item)
        assert len(spaced._kept) <= 2 * limit
    chosen = spaced.chosen()
    assert chosen == sorted(set(chosen)) and len(chosen) == min(limit, number)
    assert chosen[0] == 0 and chosen[-1] == number - 1
    gaps = [b - a for a, b in zip(chosen, chosen[1:], strict=False)]
    assert not gaps or max(gaps) <= 2.5 * number / len(chosen)


def test_moments_go_from_the_first_step_to_the_last(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_lines(path, list(rl_samples(steps=100)))
    shown = read_samples(path)
    steps = [moment[0].step for moment in shown.moments]
    assert len(steps) == NUM_MOMENTS and steps[0] == 1 and steps[-1] == 100
    assert [asked.prompt_id for asked in shown.moments[-1]] == [f"sums-100-{p}" for p in range(4)]
    assert shown.highest == {"math": 0.5} and not shown.repeated and not shown.fates


def test_length_percentiles_are_those_of_all_samples_of_the_step(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [{"step": 1, "prompt_id": f"p{i // 10}", "completion_tokens": i, "text": ""} for i in range(101)]
    write_lines(path, [*rows, {"step": 2, "prompt_id": "p", "text": ""}])
    assert read_samples(path).token_spread == {1.0: (10.0, 90.0)}  # of 0..100; of step 2 no length is known


def test_a_prompt_is_the_same_only_by_its_id(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [{"step": step, "prompt_id": f"p{step % 2}", "text": str(step), "reward": float(step)} for step in range(1, 41)]
    write_lines(path, rows)
    (visits,) = read_samples(path).repeated  # p1 is of the first step; p0 is not, and is not followed
    assert (visits[0].step, visits[-1].step) == (1, 39)
    assert all(asked.prompt_id == "p1" and asked.mean_reward == asked.step for asked in visits)


def test_of_many_fates_some_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_lines(path, [{"prompt_id": f"p{i}", "dropped": f"reason {i}" if i else None, "completion": "x" * 50_000} for i in range(100)])
    fates = read_samples(path).fates
    assert len(fates) == 12 and "kept" in fates
    assert all(len(row["completion"]) < 5_000 for rows in fates.values() for row in rows)


def test_a_line_longer_than_a_line_may_be_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.report.jsonl_index.MAX_LINE_BYTES", 100)
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"a": "x" * 150}) + "\n" + json.dumps({"a": 1}) + "\n")
    lines = Lines(path)
    assert list(lines) == [{"a": 1}] and lines.num_unread == 1


def test_tags_and_special_tokens_are_set_off_and_nothing_else_is_markup() -> None:
    assert tagged("<think> 1 < 2 </think><|im_end|>") == (
        "<mark>&lt;think&gt;</mark> 1 &lt; 2 <mark>&lt;/think&gt;</mark><mark>&lt;|im_end|&gt;</mark>"
    )
    shown = str(tagged(NAUGHTY))
    assert shown.replace("<mark>", "").replace("</mark>", "").count("<") == 0 and "<mark>⟨U+001B⟩</mark>" in shown
