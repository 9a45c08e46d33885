"""A recipe's tags reach the rewards that have a setting for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.config import PretrainedModel, Recipe, RewardUse, SftStage, Tags
from grpo.data.golds import with_tags
from rewards import SHIPPED

NEEDED = {"length": {"max_tokens": 10}, "judge": {"base_url": "http://localhost/v1", "model": "m"}, "reward_model": {"model": "org/name"}}
THINK, ANSWER = (
    {"language", "format", "judge", "math", "reward_model"},
    {"math", "exact", "format", "fuzzy", "choice", "code", "reasoning_gym"},
)


@pytest.mark.parametrize("name", SHIPPED)
def test_tags_go_to_those_that_ask_for_them(name: str) -> None:
    stage = SftStage(name="s", kind="sft", data="d")
    recipe = Recipe(name="r", model=PretrainedModel(path="m"), tags=Tags(think="plan", answer="reply"), stages=[stage])
    needed = NEEDED.get(name, {})
    tags = {**({"think_tag": "plan"} if name in THINK else {}), **({"answer_tag": "reply"} if name in ANSWER else {})}
    assert with_tags(RewardUse(use=name, **needed), recipe, Path()) == {**tags, **needed}
    own = {key: "mine" for key in tags}
    assert with_tags(RewardUse(use=name, **needed, **own), recipe, Path()) == {**own, **needed}
