"""What counts as the thinking, the answer, the box, the last number and a word."""

from __future__ import annotations

import pytest

from rewards.rules.extract import answer_text, boxed_text, last_number, think_text
from rewards.rules.tokenize import words


def test_thinking_is_the_inside_of_the_first_think_block() -> None:
    assert think_text("<think>a b</think><answer>7</answer><think>c</think>") == "a b"


def test_thinking_may_begin_in_the_prefill() -> None:
    assert think_text("two</think><answer>2</answer>", prefill="<think>\n") == "\ntwo"


def test_thinking_that_was_cut_off_runs_to_the_end() -> None:
    assert think_text("<think>and then") == "and then"


def test_no_think_tag_is_no_thinking() -> None:
    assert think_text("just text") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 7\n</answer>", "7"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>1</answer><answer>2", "1"),  # the last complete block
        ("<answer><answer>3</answer>", "3"),
        ("</answer>7<answer>", None),
        ("<answer>7", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_complete_block(text: str, answer: str | None) -> None:
    assert answer_text(text) == answer


def test_tags_may_have_other_names() -> None:
    assert answer_text("<final>7</final>", "final") == "7" and think_text("<t>x</t>", tag="t") == "x"


def test_box_closes_where_its_braces_balance() -> None:
    assert boxed_text(r"so \boxed{1} no, \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"


def test_a_box_that_never_closes_is_passed_over() -> None:
    assert boxed_text(r"\boxed{1} and \boxed{2") == "1" and boxed_text(r"\boxed{2") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("17 - 8 = 9", "9"),
        ("it is -3.", "-3"),
        ("x=-3", "-3"),
        ("x = \u22123", "-3"),  # a minus sign as typesetters write it
        ("5-3", "3"),  # subtraction, not minus three
        ("(2)-4", "4"),
        ("1,234.50 euros", "1,234.50"),
        ("first 1, then 2,", "2"),
        ("about .5", ".5"),
        ("none", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_words_are_lower_case_and_chinese_characters_stand_alone() -> None:
    assert words("Don't add 12 to 数字_x!") == ["don't", "add", "12", "to", "数", "字", "x"]
