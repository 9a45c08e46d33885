"""What stages get of their sources: prompts that fit, mixtures by weight, and everything left out said and counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from grpo.config import Keep, Recipe
from grpo.errors import DataError
from grpo.resources.services import Services
from grpo.rl.step_metrics import metrics_by_source
from grpo.stages.reject import pass_rate
from grpo.stages.supervised import tokenised
from grpo.types import Checkpoint, Dataset, Group, Sample
from rollout.types import Completion, Prompt
from tests.stages.conftest import Heard


@pytest.fixture
def services(tmp_path: Path, tiny_qwen2: Path) -> Any:
    """Services over sources of letters: the bytes of a prompt are its tokens."""

    def make(**sources: Any) -> Services:
        data = {}
        for name, value in sources.items():
            source = value if isinstance(value, dict) else {"prompts": value}
            rows = "".join(json.dumps({"prompt": prompt, "completion": "c"}) + "\n" for prompt in source.pop("prompts"))
            (tmp_path / f"{name}.jsonl").write_text(rows)
            data[name] = {"jsonl": f"{name}.jsonl", **source}
        keys = {"name": "r", "model": {"path": str(tiny_qwen2)}, "template": "plain", "data": data}
        evaluation = {"evaluation": {"prompts": "heldout"}} if "heldout" in data else {}
        recipe = Recipe.model_validate({**keys, **evaluation, "stages": [{"name": "s", "kind": "sft", "data": next(iter(data))}]})
        return Services.of(recipe, tmp_path, tmp_path / "run", {"base": Checkpoint(tiny_qwen2)}, Heard())

    return make


def test_prompts_at_the_limit_fit_and_those_over_it_are_counted(services: Any, tiny_qwen2: Path) -> None:
    place = services(letters=["x" * 7, "x" * 8, "x" * 9, "x" * 5000])
    found = place.prompts.prompts("letters", place.prompts.tokenizer(tiny_qwen2), max_tokens=8)
    assert [(prompt.id, len(prompt.tokens)) for prompt in found.prompts] == [("letters/0", 7), ("letters/1", 8)]
    assert found.num_too_long == 2
    with pytest.raises(DataError, match="letters: none of 4 prompts fits max_prompt_tokens = 6; they have 7 to 5000 tokens; raise it"):
        place.prompts.prompts("letters", place.prompts.tokenizer(tiny_qwen2), max_tokens=6)


def test_rows_know_their_source_unless_they_have_a_column_of_that_name(services: Any, tmp_path: Path) -> None:
    place = services(a=["x"], b=["y"])
    assert [row["data_source"] for row in place.prompts.rows(["a", "b"])] == ["a", "b"]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "data_source": "the user\'s own"}\n')
    place.context.artifacts["harvest"] = Dataset(tmp_path)
    assert place.prompts.rows("harvest")[0]["data_source"] == "the user's own"


def test_a_mixture_is_cut_to_its_weights_for_stages_that_go_through_their_rows(services: Any, tiny_qwen2: Path) -> None:
    place = services(a=[f"a{i}" for i in range(30)], b=[f"b{i}" for i in range(5)])
    mixture = Recipe.model_validate(
        {
            **place.context.recipe.model_dump(by_alias=True),
            "stages": [{"name": "s", "kind": "sft", "data": [{"use": "a", "weight": 3}, {"use": "b", "weight": 1}]}],
        }
    )
    sources = mixture.stages[0].data
    assert Counter(row["data_source"] for row in place.prompts.rows(sources)) == {"a": 15, "b": 5}
    assert "  mixture: 15 of 30 rows of a, 5 of 5 rows of b" in place.context.progress.lines
    tokenizer = place.prompts.tokenizer(tiny_qwen2)
    assert len(place.prompts.prompts(sources, tokenizer, max_tokens=9).prompts) == 20
    assert len(place.prompts.prompts(sources, tokenizer, max_tokens=9, is_endless=True).prompts) == 35


def test_what_is_left_out_of_a_source_is_said_and_written_down(services: Any, tmp_path: Path) -> None:
    filters = {"max_prompt_tokens": 3, "duplicates": "exact"}
    place = services(letters={"prompts": ["held", "abc", "ABC", "abcd", "x"], "filters": filters}, heldout=["held"])
    assert [row["prompt"] for row in place.prompts.rows("letters")] == ["abc", "x"]
    said = "2 rows (left out: 1 held_out, 1 duplicate, 1 too_long)"
    assert place.context.progress.lines == [f"  data source 'letters': {said}"]
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == {
        "letters": {"rows": 2, "left_out": {"held_out": 1, "duplicate": 1, "too_long": 1}}
    }


def test_a_template_is_checked_when_its_tokenizer_is_first_asked_for(services: Any, tiny_qwen2: Path) -> None:
    place = services(a=["x"])
    config = tiny_qwen2 / "generation_config.json"
    before = config.read_text()
    config.write_text('{"eos_token_id": 3}')
    try:
        for _ in range(2):
            place.prompts.tokenizer(tiny_qwen2)
    finally:
        config.write_text(before)
    (line,) = place.context.progress.lines
    assert line.startswith("  template plain: the model's configuration stops at ")


def test_rows_measured_in_an_earlier_stage_have_its_pass_rates(tmp_path: Path, tiny_qwen2: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"path": str(tiny_qwen2)},
            "data": {
                "all": {"jsonl": "rows.jsonl"},
                "hard": {"jsonl": "rows.jsonl", "measured_in": "probe", "filters": {"max_pass_rate": 0.5}},
            },
            "stages": [
                {"name": "probe", "kind": "reject", "prompts": "all", "rewards": [{"use": "math"}]},
                {"name": "tune", "kind": "rl", "prompts": "hard", "rewards": [{"use": "math"}], "steps": 1},
            ],
        }
    )
    samples = tmp_path / "run" / "01-probe" / "samples.jsonl"
    samples.parent.mkdir(parents=True)
    samples.write_text(
        "".join(json.dumps({"prompt": p, "parts": {"math": right}}) + "\n" for p, right in (("a", 1.0), ("b", 1.0), ("b", 0.0)))
    )
    place = Services.of(recipe, tmp_path, tmp_path / "run", {}, Heard())
    assert [(row["prompt"], row["pass_rate"]) for row in place.prompts.rows("hard")] == [("b", 0.5)]


def sampled(prompt_id: str, *rewards: float | None) -> Group:
    completion = Completion.of((1,), (-1.0,), (True,), "x", "stop", ((0, 0),))
    return Group(Prompt(prompt_id, (1,)), tuple(Sample(prompt_id, completion, reward, {"math": reward}) for reward in rewards))


def test_rewards_are_told_by_source_where_there_are_several() -> None:
    groups = [sampled("a/0", 1.0, 0.0), sampled("b/0", 1.0, None), sampled("a/7", 1.0, 1.0)]
    assert metrics_by_source(groups) == {
        "by_source/a_reward": 0.75,
        "by_source/a_groups": 2.0,
        "by_source/b_reward": 1.0,
        "by_source/b_groups": 1.0,
    }
    assert metrics_by_source(groups[::2]) == {}


def test_a_kept_prompts_pass_rate_is_of_its_judged_samples() -> None:
    assert pass_rate(sampled("a/0", 1.0, 0.0, None, 0.5), Keep()) == pytest.approx(1 / 3)
    assert pass_rate(sampled("a/0", 1.0, 0.0, None, 0.5), Keep(min_reward={"math": 0.5})) == pytest.approx(2 / 3)
    assert pass_rate(sampled("a/0", None), Keep()) is None


def test_where_nothing_says_how_long_prompts_are_they_have_the_room_that_the_model_leaves(tmp_path: Path, tiny_qwen2: Path) -> None:
    def longest(completion: int) -> int:
        evaluation = {"prompts": "rows", "max_completion_tokens": completion}
        keys = {"name": "r", "model": {"path": str(tiny_qwen2)}, "data": {"rows": {"jsonl": "rows.jsonl"}}, "evaluation": evaluation}
        recipe = Recipe.model_validate({**keys, "stages": [{"name": "s", "kind": "eval"}]})
        return Services.of(recipe, tmp_path, tmp_path / "run", {"base": Checkpoint(tiny_qwen2)}, Heard()).engines.longest_prompt()

    assert (longest(200), longest(255)) == (56, 1)  # of 256 positions
    with pytest.raises(DataError, match="max_completion_tokens = 256 leaves no room for a prompt: the model has 256 positions; lower it"):
        longest(256)


def test_an_evaluation_asks_what_model_or_setting_leave_room_for_whatever_stages_take(services: Any, tiny_qwen2: Path) -> None:
    place = services(letters=["x"], heldout=["x" * 7, "x" * 200, "x" * 236, "x" * 237])
    room = 256 - 20  # positions, without a completion
    model = place.context.checkpoint("base")

    def limit(**keys: Any) -> tuple[float, int]:
        recipe = Recipe.model_validate(
            {**place.context.recipe.model_dump(by_alias=True), "evaluation": {"prompts": "heldout", "max_completion_tokens": 20, **keys}}
        )
        again = Services.of(recipe, place.context.base, place.context.folder, place.context.artifacts, Heard())
        settings = recipe.evaluation
        assert settings is not None
        return again.engines.prompt_limit(settings, model), again.engines.engine_tokens

    assert limit() == (room, 256)
    assert limit(max_prompt_tokens=199) == (199, 236 + 20)  # one engine for all, which has 512 tokens of room or as many as the model has
    assert (
        len(place.prompts.prompts("heldout", place.prompts.tokenizer(tiny_qwen2), room, called="evaluation.max_prompt_tokens").prompts) == 3
    )


def test_rows_that_a_stage_leaves_out_or_mends_are_said_and_written_down(services: Any, tmp_path: Path, tiny_qwen2: Path) -> None:
    place = services(letters=["x" * 5, "x" * 50, "x" * 60])
    stage = place.context.recipe.stages[0].model_copy(update={"max_tokens": 20})
    found = tokenised(place.prompts.rows("letters"), Checkpoint(tiny_qwen2), stage, place)
    assert (len(found), found.num_too_long) == (1, 2)
    assert place.context.progress.lines == ["  2 of 3 rows are longer than max_tokens = 20 and left out"]
    rows = [{"prompt": "x", "completion": "c<|end|>"}, {"prompt": "x", "completion": "c"}]
    found = tokenised(rows, Checkpoint(tiny_qwen2), stage, place)
    assert found.completions[0] == found.completions[1]
    assert place.context.progress.lines[-1].startswith("  1 completion ended with the end token that is appended anyway")


def test_only_the_assistants_turns_count_in_a_batch(services: Any, tiny_qwen2: Path) -> None:
    place = services(letters=["x"])
    recipe = place.context.recipe.model_copy(update={"template": "./t.jinja"})
    (place.context.base / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|end|>{% endfor %}{{ 'a:' if add_generation_prompt }}"
    )
    chat = Services.of(recipe, place.context.base, place.context.folder, place.context.artifacts, Heard())
    turns = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two"))]
    rows = [{"prompt": turns[:1], "completion": turns[1:]}, {"prompt": "q", "completion": "text"}]
    batch = tokenised(rows, Checkpoint(tiny_qwen2), recipe.stages[0], chat).batch([0, 1])
    tokenizer = chat.prompts.tokenizer(tiny_qwen2)
    learned = [tokenizer.decode(tokens[mask]) for tokens, mask in zip(batch.tokens, batch.loss_mask, strict=True)]
    assert learned == ["one<|end|>two<|end|>", "text<|end|>"]
    assert batch.weights[~batch.loss_mask].sum() == 0 and batch.weights.sum() == pytest.approx(1.0)
