"""A judge in keep: what it finds too weak, or cannot judge, is not kept."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.config import Keep, Tags
from grpo.data.rejection_filter import BELOW, judge, row_of
from grpo.resources.scoring import score_groups
from rewards import RewardRuntime, RewardSpec
from rollout.types import Completion, Prompt
from tests.rewards.models.stub_judge import Answer, serving, shown_to

GRADES = {"clear": "SCORE: 9", "fair": "SCORE: 6", "poor": "SCORE: 2", "odd": "who knows"}


def grade(body: dict[str, Any], _: int) -> str | Answer:
    told = shown_to(body)
    return Answer(status=500) if "broken" in told else next(reply for word, reply in GRADES.items() if word in told)


def completion(text: str) -> Completion:
    return Completion.of((1, 2), (-1.0, -1.0), (True, True), text, "stop", ((0, 0),))


def test_min_reward_may_ask_for_the_judges_grade() -> None:
    prompts = [Prompt("a", (1,), {"prompt": "Why?"}), Prompt("b", (1,), {"prompt": "How?"})]
    texts = [["clear answer", "poor answer", "odd answer"], ["fair answer", "broken answer", "<think>clear, but unfinished"]]
    with serving(grade) as stub:
        spec = RewardSpec("judge", name="helpful", settings={"base_url": stub.url, "model": "m", "retries": 0})
        with RewardRuntime([spec, RewardSpec("format")]) as runtime:
            groups = score_groups(runtime, prompts, [[completion(text) for text in drawn] for drawn in texts])
    keep = Keep(min_reward={"helpful": 0.6}, per_prompt=2, language=None)
    judged = judge(groups, keep, Tags())
    assert [item.dropped for item in judged] == [None, BELOW, BELOW, None, BELOW, BELOW]
    assert [item.sample.parts["helpful"] for item in judged] == [0.9, 0.2, None, pytest.approx(0.6), None, 0]
    odd, broken = (row_of(judged[index].group, judged[index].sample, "harvest") for index in (2, 4))
    assert odd["notes"] == {"helpful": "abstained: no grade can be read from the reply 'who knows'"}
    assert broken["notes"]["helpful"].endswith("HTTP 500")
