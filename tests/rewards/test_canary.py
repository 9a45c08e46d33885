"""The canary sings when gold answers score 1 and wrong ones 0, and names the row otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewards import RewardRuntime, RewardSpec, canary, canary_problems, read_golds, refused_golds
from rewards.canary import canary_trials

ROWS = [{"question": f"{n} + {n}", "answer": str(2 * n)} for n in range(40)]


@pytest.fixture(scope="module")
def runtime() -> Iterator[RewardRuntime]:
    with RewardRuntime([RewardSpec("math"), RewardSpec("format", weight=0.2)]) as math_and_format:
        yield math_and_format


def render(answer: str) -> str:
    return f"<think>\nlet me see\n</think>\n<answer>{answer}</answer>"


def test_sound_data_have_no_problems(runtime: RewardRuntime) -> None:
    assert canary_problems(runtime, ROWS, render) == []


def test_a_gold_answer_that_does_not_score_one_is_shown_with_its_row(runtime: RewardRuntime) -> None:
    rows = [{"question": "capital?", "answer": "nobody knows"}, *ROWS[:7]]
    (problem,) = canary_problems(runtime, rows, render)
    assert problem.startswith(
        "row 0: its own gold answer 'nobody knows' scores None (abstained) by 'math', not 1; row: {'question': 'capital?'"
    )


def test_a_template_that_hides_the_answer_fails_every_row(runtime: RewardRuntime) -> None:
    assert len(canary_problems(runtime, ROWS, lambda answer: f"The answer is {answer}")) == 8


def test_every_row_can_be_checked(runtime: RewardRuntime) -> None:
    rows = [*ROWS, {"question": "?", "answer": ""}]
    assert canary_problems(runtime, rows, render) == []  # not among the eight
    assert len(canary_problems(runtime, rows, render, num_rows=None)) == 1


def test_gold_answers_that_cannot_be_read_are_found_among_all(runtime: RewardRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    golds = ["7", r"\sqrt{2}", "", "nobody knows, or says", "x^2 + 1", None, "", "1/0"]
    rows = [{"answer": gold} for gold in golds]
    assert refused_golds(runtime, rows, render, name="math") == [2, 3, 5, 6, 7]
    assert refused_golds(runtime, rows[:1], render, name="math") == refused_golds(runtime, [], render, name="math") == []
    monkeypatch.setattr(canary, "MAX_GOLDS_READ", 3)  # of five different ones that are no plain numbers, every other: a root, a text, 1/0
    assert refused_golds(runtime, rows, render, name="math") == [3, 7]


def test_a_reward_that_is_always_pleased_is_caught(reward_file: Callable[..., Path]) -> None:
    folder = reward_file("def pleased(completion, answer):\n    return 1.0\n")
    with RewardRuntime([RewardSpec("./mine.py:pleased", required=True)], base=folder) as runtime:
        problems = canary_problems(runtime, ROWS, render)
    assert len(problems) == 8 and "the wrong answer '10' scores 1 by 'pleased', not 0" in problems[0]


def test_equal_golds_in_other_words_are_no_wrong_answers(runtime: RewardRuntime) -> None:
    rows = [{"answer": answer} for answer in ("1/2", "0.5", "0.50", "2/4")]
    assert canary_problems(runtime, rows, render) == []


def test_without_a_reward_that_reads_answers_there_is_nothing_to_check() -> None:
    with RewardRuntime([RewardSpec("format")]) as runtime:
        assert canary_problems(runtime, ROWS, render) == []


def test_an_opinion_is_not_held_to_gold_answers() -> None:
    """Nobody listens at this address: a judge that were asked would fail. Nor is a required reward without the answer a matter of gold."""
    judge = RewardSpec("judge", settings={"base_url": "http://127.0.0.1:9/v1", "model": "m"}, required=True)
    with RewardRuntime([judge, RewardSpec("format", required=True)]) as runtime:
        assert canary_problems(runtime, ROWS, render) == []
        assert canary_problems(runtime, ROWS, render, name="judge") == []
    with RewardRuntime([judge, RewardSpec("math")]) as runtime:
        assert len(canary_problems(runtime, ROWS, lambda answer: f"The answer is {answer}")) == 8


@pytest.mark.parametrize("is_required", [True, False])
def test_a_verifier_that_never_says_yes_is_refused_with_all_eight_rows(reward_file: Callable[..., Path], is_required: bool) -> None:
    folder = reward_file("def broken(completion, answer):\n    return 0.0\n")
    with RewardRuntime([RewardSpec("./mine.py:broken", required=is_required)], base=folder) as runtime:
        problems = canary_problems(runtime, ROWS, render)
    assert len(problems) == 8
    for number, problem in zip(range(0, 40, 5), problems, strict=True):
        assert problem.startswith(f"row {number}: its own gold answer '{2 * number}' scores 0.0 by 'broken', no")
        assert f"row: {{'question': '{number} + {number}', 'answer': '{2 * number}'}}" in problem


def test_a_swapped_column_is_refused_with_all_eight_rows(runtime: RewardRuntime) -> None:
    """Questions where answers belong. Each equals itself, and math-verify reads a value in it, so that scores alone show nothing."""
    rows = [{"question": row["answer"], "answer": f"What is {row['question']}, please?"} for row in ROWS]
    problems = canary_problems(runtime, rows, render)
    assert len(problems) == 8
    assert problems[1].startswith("row 5: its gold answer 'What is 5 + 5, please?' is a question; name the column of answers")
    assert problems[1].endswith("row: {'question': '10', 'answer': 'What is 5 + 5, please?'}")


def test_answers_of_other_rows_are_refused_where_completions_are_checked_against_the_question(reward_file: Callable[..., Path]) -> None:
    """A verifier that computes the answer itself finds out that each row has its neighbour's."""
    folder = reward_file(
        """
        def computes(completion, question, answer):
            left, right = question.split(" + ")
            return float(f">{int(left) + int(right)}<" in completion)
        """
    )
    shifted = [{**row, "answer": ROWS[index - 1]["answer"]} for index, row in enumerate(ROWS)]
    with RewardRuntime([RewardSpec("./mine.py:computes", required=True)], base=folder) as runtime:
        assert canary_problems(runtime, ROWS, render) == []
        assert len(canary_problems(runtime, shifted, render)) == 8


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("Janet sells 16 - 3 = <<16-3=13>>13 eggs.\n#### {}", "is a worked solution: the answer is only what follows ####"),  # GSM8K
        ("First we add both numbers, then we look at what that makes: $\\boxed{{{}}}$.", "is a text of 12 words, not an answer"),  # MATH
        ("<answer>{}</answer> is right", "scores None (abstained) by 'math', not 1"),
        ("nobody knows", "scores None (abstained) by 'math', not 1"),
    ],
)
def test_gold_answers_in_the_wrong_form_are_refused_with_all_eight_rows(runtime: RewardRuntime, form: str, says: str) -> None:
    rows = [{**row, "answer": form.format(row["answer"])} for row in ROWS]
    problems = canary_problems(runtime, rows, render)
    assert sum(says in problem and "; row: {'question': '" in problem for problem in problems) == 8


def test_answers_with_units_and_in_words_are_answers(runtime: RewardRuntime) -> None:
    rows = [
        {"answer": answer} for answer in ("10 apples", "$3 per hour", r"x \in \{1, 2\}", r"\text{Evelyn}", "sin x + log y", "x=3 or x=5")
    ]
    assert canary_problems(runtime, rows, render) == []


def test_a_reward_on_another_scale_passes_where_it_ever_prefers_a_right_answer(reward_file: Callable[..., Path]) -> None:
    folder = reward_file(
        """
        def near(completion, answer):
            return -abs(int(completion.split("<answer>")[1].split("<")[0]) - int(answer))

        def far(completion, answer):
            return -near(completion, answer)
        """
    )
    with (
        RewardRuntime([RewardSpec("./mine.py:near")], base=folder) as near,
        RewardRuntime([RewardSpec("./mine.py:far")], base=folder) as far,
    ):
        assert canary_problems(near, ROWS, render) == []
        problems = canary_problems(far, ROWS, render)
    assert len(problems) == 8 and "scores 0.0 by 'far', no more than wrong ones: '10' 10.0, '20' 20.0" in problems[0]


def test_wrong_answers_are_other_rows_and_such_as_can_be_read(reward_file: Callable[..., Path]) -> None:
    """The answers that come first in the alphabet, and on most rows, are unreadable: each row is tried on two of the others all the same."""
    folder = reward_file("def digits(completion, answer):\n    return float(f'>{answer}<' in completion) if answer.isdigit() else None\n")
    rows = [{"answer": str(n) if n % 3 == 0 else f"!! nobody knows {n} !!"} for n in range(12)]
    with RewardRuntime([RewardSpec("./mine.py:digits", required=True)], base=folder) as runtime:
        trials = canary_trials(runtime, rows, render, num_rows=None)
    wrong = {index: [trial.answer for trial in trials if trial.row == index and not trial.is_gold] for index in range(12)}
    assert wrong[0] == ["3", "6"] and wrong[1] == ["3", "6"] and wrong[3] == ["6", "9"] and wrong[9] == ["0", "3"]
    assert all(trial.scored.parts["digits"] == 0 for trial in trials if trial.row % 3 == 0 and not trial.is_gold)


def test_of_a_list_of_gold_answers_all_or_each_must_be_right(reward_file: Callable[..., Path]) -> None:
    folder = reward_file(
        """
        def any_of(completion, answer):
            return float(any(f">{one}<" in completion for one in answer))

        def all_of(completion, answer):
            return float(f">{', '.join(answer)}<" in completion)

        def first_of(completion, answer):
            return float(f">{answer[0]}<" in completion)
        """
    )
    rows = [{"answer": [str(n), f"x{n}"]} for n in range(4)]
    problems = {}
    for name in ("any_of", "all_of", "first_of"):
        with RewardRuntime([RewardSpec(f"./mine.py:{name}", required=True)], base=folder) as runtime:
            problems[name] = canary_problems(runtime, rows, render)
    assert problems["any_of"] == problems["all_of"] == []
    assert len(problems["first_of"]) == 4 and "its own gold answer 'x0' scores 0.0" in problems["first_of"][0]


def test_gold_answers_in_a_wrong_form_are_no_good_ones(runtime: RewardRuntime) -> None:
    rows = [{"answer": "What is 5 + 5, please?"}, {"answer": "x + 1"}, {"answer": "7"}]
    assert read_golds(runtime, rows, render, name="math") == ([0], 3)
