"""Courses of supervised training: which rows, at which rate, whatever update one asks for first."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from grpo.config import SftStage
from grpo.data.sft_batches import Epochs, Lesson, Replay, course_of
from grpo.errors import DataError


def stage(**keys: object) -> SftStage:
    return SftStage.model_validate({"name": "s", "kind": "sft", "data": "d", "batch_size": 10, **keys})


def phases(*listed: dict[str, object], **keys: object) -> SftStage:
    return stage(curriculum={"phases": list(listed), **keys})


def test_an_epoch_has_every_row_once_and_may_end_with_a_smaller_update() -> None:
    course = Epochs(25, 10, epochs=2, seed=3)
    lessons = [course[update] for update in range(len(course))]
    assert [len(lesson.rows) for lesson in lessons] == [10, 10, 5, 10, 10, 5]
    epochs = [[row for lesson in part for row in lesson.rows] for part in (lessons[:3], lessons[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(25)) and epochs[0] != epochs[1]
    assert [lesson.num_before for lesson in lessons] == [0, 10, 20, 25, 35, 45]


def test_a_mix_draws_each_third_in_its_share_and_high_or_low_is_easy() -> None:
    rows = [{"pass_rate": rate / 89} for rate in random.Random(1).sample(range(90), 90)]
    for easy, hardest in (("high", 0), ("low", 2)):
        course = course_of(phases({"updates": 6, "mix": {"easy": 0.3, "medium": 0.5, "hard": 0.2}}, easy=easy), rows, seed=0)
        drawn = [row for update in range(6) for row in course[update].rows]
        thirds = Counter(round(rows[row]["pass_rate"] * 89) // 30 for row in drawn)
        assert thirds == {2 - hardest: 18, 1: 30, hardest: 12}
        assert len(set(drawn)) == 60  # no third is gone through yet


def test_a_lesson_is_the_same_whenever_it_is_asked_for() -> None:
    rows = [{"pass_rate": index / 40} for index in range(40)]
    settings = phases({"updates": 3, "mix": {"easy": 1}, "batch_size": 4}, {"updates": 5, "mix": {"easy": 1, "hard": 1}}, {"updates": 4})
    in_order = course_of(settings, rows, seed=7)
    lessons = [in_order[update] for update in range(12)]
    for update in random.Random(0).sample(range(12), 12):
        assert course_of(settings, rows, seed=7)[update] == lessons[update]
    assert [lesson.num_before for lesson in lessons] == [0, 4, 8, 12, 22, 32, 42, 52, 62, 72, 82, 92]
    assert lessons[0].rows != course_of(settings, rows, seed=8)[0].rows


def test_without_a_mix_no_difficulty_is_needed() -> None:
    assert len(course_of(phases({"updates": 2}), [{}] * 30, seed=0)[1].rows) == 10
    with pytest.raises(DataError, match="row 0: no pass_rate is known"):
        course_of(phases({"updates": 2}, {"updates": 1, "mix": {"hard": 1}}), [{}] * 30, seed=0)


def test_a_third_without_rows_is_said() -> None:
    with pytest.raises(DataError, match="phase 1 of the curriculum mixes thirds of 1 rows, and one of them is empty"):
        course_of(phases({"updates": 1, "mix": {"easy": 1, "hard": 1}}), [{"pass_rate": 1.0}], seed=0)


@pytest.mark.parametrize("frac", [0.05, 0.2, 0.5])
def test_replay_keeps_its_share_to_within_a_row(frac: float) -> None:
    replay = Replay(30, frac, seed=0)
    own = replayed = 0
    for size in [8] * 5 + [16] * 50 + [3]:
        replayed += len(replay.beside(Lesson(list(range(size)), own)))
        own += size
        assert -1e-6 < own * frac / (1 - frac) - replayed < 1
