"""Batch rewards written for TRL and open-r1 run unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rewards import RewardError, RewardRuntime, RewardSpec, ScoreInput, load_reward

TRL = r"""
    import re

    # TRL's quick start
    def reward_num_unique_letters(completions, **kwargs):
        texts = [completion[0]["content"] for completion in completions]
        return [float(len(set(text))) for text in texts]

    # open-r1's format reward
    def format_reward(completions, **kwargs):
        pattern = r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$"
        contents = [completion[0]["content"] for completion in completions]
        return [1.0 if re.match(pattern, content, re.DOTALL | re.MULTILINE) else 0.0 for content in contents]

    # TRL: several columns, None where a reward does not apply
    def math_reward(prompts, completions, completion_ids, answer, task, **kwargs):
        assert len(prompts) == len(completions) == len(completion_ids) == len(answer) == len(task)
        return [float(text.endswith(gold)) if kind == "math" else None for text, gold, kind in zip(completions, answer, task)]

    def named_only(completions, answer):
        return [float(a in c) for c, a in zip(completions, answer)]

    def all_columns(completions, **kwargs):
        assert sorted(kwargs) == ["answer", "completion_ids", "finish", "prefill", "prompts", "task"], sorted(kwargs)
        return [1.0] * len(completions)

    async def asynchronous(completions, **kwargs):
        return [2.0] * len(completions)

    def too_few(completions, **kwargs):
        return [1.0]

    def no_list(completions, **kwargs):
        return 1.0

    def one_bad(completions, **kwargs):
        return [1.0, float("nan")]
"""
CHAT = [{"role": "user", "content": "q"}]


def sample(completion: str, prompt: object = "q", prefill: str = "", task: str = "math") -> ScoreInput:
    columns = {"prompt": prompt, "completion": completion, "tokens": (1, 2), "prefill": prefill, "finish": "stop"}
    return ScoreInput({**columns, "answer": "7", "task": task})


def score(folder: Path, name: str, inputs: list[ScoreInput]) -> list[float | None]:
    with RewardRuntime([RewardSpec(f"./trl.py:{name}")], base=folder) as runtime:
        return [scored.parts[name] for scored in runtime.score(inputs)]


def test_chat_prompts_give_completions_as_messages(reward_file: Callable[..., Path]) -> None:
    assert score(reward_file(TRL, "trl.py"), "reward_num_unique_letters", [sample("aab", CHAT), sample("c", CHAT)]) == [2, 1]


def test_the_prefill_is_part_of_the_assistants_turn(reward_file: Callable[..., Path]) -> None:
    whole, opened = (
        sample("<think>\nx\n</think>\n<answer>\n7\n</answer>", CHAT),
        sample("x\n</think>\n<answer>\n7\n</answer>", CHAT, "<think>\n"),
    )
    assert score(reward_file(TRL, "trl.py"), "format_reward", [whole, opened, sample("7", CHAT)]) == [1, 1, 0]


def test_string_prompts_give_strings_and_none_abstains(reward_file: Callable[..., Path]) -> None:
    inputs = [sample("is 7"), sample("is 8"), sample("7", task="code")]
    assert score(reward_file(TRL, "trl.py"), "math_reward", inputs) == [1, 0, None]


def test_columns_go_by_name_or_all_by_kwargs(reward_file: Callable[..., Path]) -> None:
    folder = reward_file(TRL, "trl.py")
    specs = [
        RewardSpec("./trl.py:named_only"),
        RewardSpec("./trl.py:all_columns", weight=10),
        RewardSpec("./trl.py:asynchronous", weight=100),
    ]
    with RewardRuntime(specs, base=folder) as runtime:
        assert [scored.reward for scored in runtime.score([sample("7"), sample("8")])] == [211, 210]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("too_few", "reward 'too_few' returned 1 numbers for 2 samples"),
        ("no_list", r"reward 'no_list' returned 1.0 \(float\) for 2 samples; return a list"),
    ],
)
def test_the_wrong_length_names_the_function(reward_file: Callable[..., Path], name: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        score(reward_file(TRL, "trl.py"), name, [sample("a"), sample("b")])


def test_one_bad_number_costs_its_own_sample(reward_file: Callable[..., Path]) -> None:
    folder = reward_file(TRL, "trl.py")
    with RewardRuntime([RewardSpec("./trl.py:one_bad")], base=folder) as runtime:
        good, bad = runtime.score([sample("a"), sample("b")])
        assert (good.reward, bad.reward) == (1, None)
        assert "returned nan (float) for sample 1" in bad.notes["one_bad"]


def test_called_directly_it_takes_and_returns_lists(reward_file: Callable[..., Path]) -> None:
    named_only = load_reward("./trl.py:named_only", base=reward_file(TRL, "trl.py"))
    assert named_only.is_batch and named_only(completions=["7", "8"], answer=["7", "7"]) == [1, 0]
