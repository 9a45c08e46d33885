"""format, exact, length and repetition, by hand."""

from __future__ import annotations

import pytest

from rewards import load_reward
from rewards.repetition import repeated_ngram_share


@pytest.mark.parametrize(
    ("completion", "score", "why"),
    [
        ("<think>2+2</think><answer>4</answer>", 1, "the form itself"),
        ("\n<think>\n2+2\n</think>\n\n<answer>4</answer>\n", 1, "whitespace outside and inside"),
        ("<think>2+2</think><answer>4</answer> done", 0, "text after the answer"),
        ("So <think>2+2</think><answer>4</answer>", 0, "text before the thinking"),
        ("<think>2+2</think> so <answer>4</answer>", 0, "text between the blocks"),
        ("<answer>4</answer><think>2+2</think>", 0, "the wrong order"),
        ("<think>2+2<answer>4</answer></think>", 0, "the answer inside the thinking"),
        ("<think>a</think><think>b</think><answer>4</answer>", 0, "two think blocks"),
        ("<think>a</think><answer>3</answer><answer>4</answer>", 0, "two answers"),
        ("<think>is it <answer>?</think><answer>4</answer>", 0, "a stray tag"),
        ("<think></think><answer>4</answer>", 0, "no thinking"),
        ("<think>2+2</think><answer> </answer>", 0, "no answer"),
        ("<think>2+2</think><answer>4", 0, "cut off"),
        ("4", 0, "no tags"),
        ("", 0, "nothing"),
    ],
)
def test_format(completion: str, score: float, why: str) -> None:
    assert load_reward("format")(completion=completion) == score, why


def test_format_judges_the_prefilled_tag_too() -> None:
    form = load_reward("format")
    assert form(completion="2+2</think><answer>4</answer>", prefill="<think>\n") == 1
    assert form(completion="<think>2+2</think><answer>4</answer>", prefill="<think>\n") == 0  # opened twice
    assert form(completion="2+2</think><answer>4</answer>", prefill="") == 0


def test_format_with_other_tags() -> None:
    assert load_reward("format", think_tag="t", answer_tag="a")(completion="<t>x</t><a>y</a>") == 1


def test_exact_ignores_case_and_spacing_only() -> None:
    exact = load_reward("exact")
    assert exact(completion="<answer> the  CAPITAL\n</answer>", answer="The capital") == 1
    assert exact(completion="<answer>the capitals</answer>", answer="The capital") == 0
    assert exact(completion="The capital", answer="The capital") == 0  # no answer block
    assert exact(completion="<answer>0</answer>", answer=0) == 1
    assert exact(completion="<answer></answer>", answer="") is None and exact(completion="x", answer=None) is None


@pytest.mark.parametrize(("num_tokens", "score"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (500, -1)])
def test_length_falls_linearly_over_the_buffer(num_tokens: int, score: float) -> None:
    """DAPO: ((max - buffer) - length) / buffer; with max 100 and buffer 20, (80 - 90) / 20 = -0.5."""
    assert load_reward("length", max_tokens=100, buffer=20)(num_tokens=num_tokens) == pytest.approx(score)
    assert load_reward("length", max_tokens=100)(num_tokens=num_tokens) == pytest.approx(score)  # a fifth by default


def test_length_without_a_buffer_is_a_cliff() -> None:
    length = load_reward("length", max_tokens=10, buffer=0)
    assert (length(num_tokens=10), length(num_tokens=11)) == (0, -1)


def test_repetition_counts_ngrams_that_come_again() -> None:
    """a b a b a: the bigrams ab ba ab ba are four, two of them distinct: 1 - 2/4."""
    assert repeated_ngram_share(list("ababa"), 2) == 0.5
    assert load_reward("repetition", n=2)(completion="A b a B a") == -0.5
    assert load_reward("repetition", n=2, max_penalty=3)(completion="a b a b a") == -1.5


def test_repetition_of_nothing_or_little_is_none() -> None:
    assert repeated_ngram_share(list("abcde"), 2) == 0
    assert repeated_ngram_share(["a"], 2) == 0 and repeated_ngram_share([], 2) == 0
    assert str(load_reward("repetition")(completion="short")) == "0.0"  # not -0.0


def test_repetition_of_a_loop_is_nearly_all() -> None:
    assert load_reward("repetition")(completion="wait no " * 200) < -0.98


def test_repetition_sees_chinese_written_without_spaces() -> None:
    assert load_reward("repetition", n=2)(completion="等等等等等") == -0.75  # four bigrams, one distinct
