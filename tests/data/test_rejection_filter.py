"""One completion for each reason to drop it, and which of the fit ones are taken."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.config import Keep, Tags
from grpo.data.rejection_filter import judge, reason_to_drop, row_of
from grpo.types import Group, Sample
from rollout.types import Completion, Prompt

ENGLISH = "<think>we add the two numbers and look at what comes out</think> <answer>7</answer>"
GERMAN = "<think>wir addieren die beiden Zahlen und schauen, was dabei herauskommt</think> <answer>7</answer>"
CHINESE = "<think>我们把这两个数字加起来看看结果是什么</think> <answer>7</answer>"
CODE = "<think>we add the two numbers\n```python\n3 + 4\n```\n</think> <answer>7</answer>"
LOOP = "<think>" + "we add the numbers " * 10 + "</think> <answer>7</answer>"
ANY = Keep(language=None)


def sample(
    text: str = ENGLISH,
    reward: float | None = 1.0,
    finish: Any = "stop",
    num_tokens: int = 20,
    parts: dict[str, float | None] | None = None,
) -> Sample:
    completion = Completion.of(tuple(range(num_tokens)), (-1.0,) * num_tokens, (True,) * num_tokens, text, finish, ((0, 0),))
    return Sample("p", completion, reward, {"math": 1.0} if parts is None else parts)


def reason(drawn: Sample, keep: Keep = ANY, prefill: str = "") -> str | None:
    return reason_to_drop(drawn, prefill, keep, Tags())


@pytest.mark.parametrize(
    ("drawn", "keep", "why"),
    [
        (sample(), Keep(), None),
        (sample(reward=None), ANY, "unjudged"),
        (sample(" \n"), ANY, "empty"),
        (sample(finish="length"), ANY, "truncated"),
        (sample(finish="abort"), ANY, "truncated"),
        (sample(parts={"math": 0.0}), ANY, "below_min_reward"),
        (sample(parts={"math": None}), ANY, "below_min_reward"),  # not judged by math is not right
        (sample(parts={"math": 1.0, "format": 0.4}), Keep(language=None, min_reward={"math": 1.0, "format": 0.5}), "below_min_reward"),
        (sample(parts={"math": 0.0, "format": 0.5}), Keep(language=None, min_reward={"format": 0.5}), None),
        (sample(num_tokens=20), Keep(language=None, max_completion_tokens=20), None),
        (sample(num_tokens=21), Keep(language=None, max_completion_tokens=20), "too_long"),
        (sample(CODE), ANY, "code_block"),
        (sample(CODE), Keep(language=None, code_blocks=True), None),
        (sample(GERMAN), Keep(), "mixed_language"),
        (sample(CHINESE), Keep(), "mixed_language"),
        (sample(GERMAN), Keep(language="de"), None),
        (sample(GERMAN), ANY, None),
        (sample(LOOP), ANY, "repetitive"),
        (sample(LOOP), Keep(language=None, max_repetition=1.0), None),
    ],
)
def test_reasons_to_drop(drawn: Sample, keep: Keep, why: str | None) -> None:
    assert reason(drawn, keep) == why


def test_repetition_is_the_share_of_repeated_four_word_runs() -> None:
    # a b c d a b c d: five runs of four, abcd twice: 1/5 repeated
    text = "a b c d a b c d"
    assert reason(sample(text), Keep(language=None, max_repetition=0.2)) is None
    assert reason(sample(text), Keep(language=None, max_repetition=0.19)) == "repetitive"


def test_the_language_is_that_of_the_thinking_which_may_begin_in_the_prefill() -> None:
    # 9 German words and 54 English ones: mixed where the thinking alone counts, English enough where all of it does
    answer = "so what you get when you add those two numbers is of course the number that we call seven. " * 3
    text = "wir addieren die beiden Zahlen und schauen dann nach</think> " + answer
    assert reason(sample(text), Keep(max_repetition=1), prefill="<think>\n") == "mixed_language"
    assert reason(sample(text), Keep(max_repetition=1)) is None


def group(*samples: Sample, prompt_id: str = "p") -> Group:
    return Group(Prompt(prompt_id, (1,), {"prompt": "What is 3 + 4?", "answer": "7"}), samples)


def test_the_first_fit_completions_of_each_prompt_are_kept_and_the_others_counted() -> None:
    one = group(sample("a", parts={"math": 0.0}), sample("b"), sample("c"), sample("d"))
    two = group(sample("b", finish="length"), sample("b"))
    judged = judge([one, two], Keep(language=None, per_prompt=2), Tags())
    assert [(item.group is one, item.sample.completion.text, item.dropped) for item in judged] == [
        (True, "a", "below_min_reward"),
        (True, "b", None),
        (True, "c", None),
        (True, "d", "enough_of_this_prompt"),
        (False, "b", "truncated"),
        (False, "b", None),
    ]


def test_a_completion_that_equals_a_kept_one_of_its_prompt_is_a_duplicate() -> None:
    drawn = group(sample("a", parts={"math": 0.0}), sample("a"), sample(" a\n"), sample("b"))
    judged = judge([drawn], Keep(language=None, per_prompt=3), Tags())
    assert [item.dropped for item in judged] == ["below_min_reward", None, "duplicate", None]
    judged = judge([drawn], Keep(language=None, per_prompt=3, duplicates=True), Tags())
    assert [item.dropped for item in judged] == ["below_min_reward", None, None, None]


def test_a_kept_row_says_where_it_comes_from() -> None:
    assert row_of(group(prompt_id="sums/3"), sample("text", parts={"math": 1.0, "format": None}), "harvest") == {
        "prompt": "What is 3 + 4?",
        "completion": "text",
        "answer": "7",
        "source": "harvest",
        "prompt_id": "sums/3",
        "parts": {"math": 1.0, "format": None},
    }
