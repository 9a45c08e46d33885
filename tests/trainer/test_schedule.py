"""Learning rates by hand: warm-up, the middle and the end of each schedule."""

from __future__ import annotations

import pytest

from grpo.config import OptimizerKeys
from grpo.trainer.schedule import learning_rate_at


def rates(total: int, **settings: object) -> list[float]:
    optimizer = OptimizerKeys(learning_rate=8.0, **settings)
    return [learning_rate_at(update, total, optimizer) for update in range(total)]


def test_warm_up_climbs_in_equal_steps_and_then_stays() -> None:
    assert rates(6, warmup_updates=4) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_without_warm_up_the_first_update_has_the_peak() -> None:
    assert rates(3) == [8.0, 8.0, 8.0]


def test_linear_falls_in_equal_steps_to_the_least_on_the_last_update() -> None:
    assert rates(7, warmup_updates=2, lr_schedule="linear", min_learning_rate=2.0) == pytest.approx([4.0, 8.0, 8.0, 6.5, 5.0, 3.5, 2.0])


def test_cosine_falls_to_the_least_on_the_last_update() -> None:
    # 2 + 6 * (1 + cos(pi p)) / 2 at p = 0, 1/4, 1/2, 3/4, 1: cos = 1, 0.7071, 0, -0.7071, -1
    expected = [4.0, 8.0, 8.0, 7.1213203, 5.0, 2.8786797, 2.0]
    assert rates(7, warmup_updates=2, lr_schedule="cosine", min_learning_rate=2.0) == pytest.approx(expected)


@pytest.mark.parametrize("lr_schedule", ["linear", "cosine"])
def test_the_last_update_learns_where_no_least_is_set(lr_schedule: str) -> None:
    # As transformers: 8 (T - u) / (T - w), and half of 1 + cos(pi u / (T - w)); 0 would be reached by a sixth update.
    expected = {"linear": [8.0, 6.4, 4.8, 3.2, 1.6], "cosine": [8.0, 7.236068, 5.236068, 2.763932, 0.763932]}
    assert rates(5, lr_schedule=lr_schedule) == pytest.approx(expected[lr_schedule])
    assert rates(7, lr_schedule=lr_schedule, warmup_updates=2) == pytest.approx([4.0, 8.0, *expected[lr_schedule]])
    assert rates(1, lr_schedule=lr_schedule) == [8.0]


@pytest.mark.parametrize("lr_schedule", ["linear", "cosine"])
def test_without_warm_up_the_curve_is_transformers(lr_schedule: str) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
    theirs = get_scheduler(lr_schedule, optimizer, num_warmup_steps=0, num_training_steps=9)
    for rate in rates(9, lr_schedule=lr_schedule):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("lr_schedule", ["linear", "cosine"])
def test_updates_after_the_last_keep_the_least(lr_schedule: str) -> None:
    optimizer = OptimizerKeys(learning_rate=8.0, lr_schedule=lr_schedule, min_learning_rate=2.0)
    assert learning_rate_at(9, 5, optimizer) == pytest.approx(2.0)


def test_a_warm_up_longer_than_the_run_is_cut_off() -> None:
    assert rates(2, warmup_updates=4, lr_schedule="cosine") == [2.0, 4.0]
