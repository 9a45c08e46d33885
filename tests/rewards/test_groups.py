"""Rewards that see all samples of a prompt at once, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rewards import RewardError, RewardRuntime, RewardSpec, ScoreInput, check_reward, load_reward

MINE = """
    import os, time
    from rewards import Noted, Undecidable, reward

    @reward(scope="group")
    def shorter_than_most(completions, answer, num_tokens, **kwargs):
        \"\"\"Share of the group's samples that are longer.\"\"\"
        assert len(set(answer)) == 1, "samples of one prompt only"
        return [sum(other > own for other in num_tokens) / len(num_tokens) for own in num_tokens]

    @reward(scope="group")
    def odd_ones(completions):
        if "crash" in completions:
            raise ValueError("crashed")
        if "hang" in completions:
            time.sleep(60)
        if "die" in completions:
            os._exit(3)
        given = {"none": None, "note": Noted(0.5, "a near tie"), "?": Undecidable("who knows"), "error": ValueError("mine alone")}
        return [given.get(text, 1.0) for text in completions]

    @reward(scope="group")
    def too_few(completions):
        return [1.0]

    @reward(scope="group")
    def no_list(completion):
        return 1.0

    @reward(scope="group")
    async def awaited(completions):
        return [float(len(completions))] * len(completions)
"""


@pytest.fixture
def folder(reward_file: Callable[..., Path]) -> Path:
    return reward_file(MINE)


def group(prompt_id: str, *completions: str) -> list[ScoreInput]:
    named = {"prompt": "q", "prompt_id": prompt_id, "answer": prompt_id}
    return [ScoreInput({**named, "completion": text, "num_tokens": len(text)}) for text in completions]


def test_a_group_is_the_samples_of_one_prompt_wherever_they_stand(folder: Path) -> None:
    """Longer ones in group a (1, 2, 3 tokens): 2, 1 and 0 of 3; in group b (2, 2): none of 2."""
    a, b = group("a", "x", "xx", "xxx"), group("b", "xx", "xx")
    with RewardRuntime([RewardSpec("./mine.py:shorter_than_most"), RewardSpec("./mine.py:awaited")], base=folder, processes=2) as runtime:
        scored = runtime.score([a[2], b[0], a[0], b[1], a[1]])
    assert [one.parts["shorter_than_most"] for one in scored] == pytest.approx([0, 0, 2 / 3, 0, 1 / 3])
    assert [one.parts["awaited"] for one in scored] == [3, 2, 3, 2, 3]


def test_the_same_prompt_drawn_twice_makes_two_groups(folder: Path) -> None:
    inputs = [ScoreInput(one.columns, group=number) for number in range(2) for one in group("a", "x", "xx")]
    with RewardRuntime([RewardSpec("./mine.py:awaited")], base=folder) as runtime:
        assert [one.reward for one in runtime.score(inputs)] == [2] * 4


@pytest.mark.parametrize(
    ("fault", "note"), [("crash", "error: ValueError: crashed"), ("hang", "timeout"), ("die", "error: its process died")]
)
def test_a_group_that_fails_costs_no_other(folder: Path, fault: str, note: str) -> None:
    with RewardRuntime([RewardSpec("./mine.py:odd_ones")], base=folder, deadline_s=0.5) as runtime:
        scored = runtime.score([*group("a", "x", "y"), *group("b", "x", fault), *group("c", "x", "y")])
    assert [one.reward for one in scored] == [1, 1, None, None, 1, 1]
    assert scored[2].notes["odd_ones"].startswith(note) and scored[4].notes == {}


def test_each_sample_may_have_a_number_a_note_or_an_error_of_its_own(folder: Path) -> None:
    with RewardRuntime([RewardSpec("./mine.py:odd_ones")], base=folder) as runtime:
        scored = runtime.score(group("a", "x", "none", "note", "?", "error"))
        assert [one.reward for one in scored] == [1, None, 0.5, None, None]
        assert [one.notes.get("odd_ones") for one in scored] == [
            None,
            "abstained",
            "a near tie",
            "undecidable",
            "error: ValueError: mine alone",
        ]
        assert runtime.counts == {"odd_ones": {"error": 1, "timeout": 0, "undecidable": 1, "abstained": 1}}


def test_called_directly_it_takes_one_groups_lists(folder: Path) -> None:
    fn = load_reward("./mine.py:shorter_than_most", base=folder)
    assert fn(completions=["a", "bb"], answer=["7", "7"], num_tokens=[1, 2]) == [0.5, 0]


def test_the_wrong_length_stops_the_step(folder: Path) -> None:
    with (
        RewardRuntime([RewardSpec("./mine.py:too_few")], base=folder) as runtime,
        pytest.raises(RewardError, match="1 numbers for 2 samples"),
    ):
        runtime.score([*group("a", "x", "y"), *group("b", "x", "y")])


def test_mistakes_are_found_before_anything_runs(folder: Path, reward_file: Callable[..., Path]) -> None:
    (problem,) = check_reward("./mine.py:no_list", {}, base=folder)
    assert "judges groups, so it needs a parameter completions" in problem
    reward_file("from rewards import reward\n\n@reward(scope='prompt')\ndef f(completions):\n    return completions\n", "typo.py")
    assert "@reward(scope='prompt'): scope is 'group', or left out" in check_reward("./typo.py:f", {}, base=folder)[0]
    nameless = [ScoreInput({"completion": "x"})]
    with (
        RewardRuntime([RewardSpec("./mine.py:odd_ones")], base=folder) as runtime,
        pytest.raises(RewardError, match="prompt_id is missing"),
    ):
        runtime.score(nameless)
