"""Rule-made instructions: the same for a seed, right, and in the tags."""

from __future__ import annotations

from grpo.config import Tags
from grpo.data.general import general_rows
from rewards.rules.extract import answer_text, think_text


def test_rows_follow_from_the_seed() -> None:
    assert general_rows(40, seed=3, tags=Tags()) == general_rows(40, seed=3, tags=Tags())
    assert general_rows(40, seed=3, tags=Tags()) != general_rows(40, seed=4, tags=Tags())


def test_fewer_rows_are_the_beginning_of_more() -> None:
    assert general_rows(40, seed=0, tags=Tags())[:7] == general_rows(7, seed=0, tags=Tags())


def test_answers_are_what_the_instructions_ask_for() -> None:
    for row in general_rows(80, seed=0, tags=Tags()):
        words = row["prompt"].split()
        match words:
            case ["Say", "the", "word", word, "twice"]:
                expected = f"{word} {word}"
            case ["Name", "the", "first", "letter", "of", word]:
                expected = word[0]
            case ["Name", "the", "last", "word", "of", *_, last]:
                expected = last
            case ["Join", first, "and", second, "with", "a", "dash"]:
                expected = f"{first}-{second}"
        assert row["answer"] == expected, row


def test_completions_say_the_answer_in_the_recipes_tags() -> None:
    for row in general_rows(20, seed=0, tags=Tags(think="t", answer="final")):
        assert answer_text(row["completion"], "final") == row["answer"]
        assert think_text(row["completion"], tag="t")
