"""An algorithm that names a paper's run brings that run's settings; the recipe's own come first, and the run says where they differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from grpo.config.load import LoadedRecipe

OVERRIDES = ["stages.reason.algorithm=r1_stage1", "stages.reason.max_tokens_per_micro_batch=40000"]


def test_what_a_recipe_leaves_open_is_as_published(load: Callable[..., LoadedRecipe], sound: str) -> None:
    stage = load(sound, *OVERRIDES).recipe.stages[1]
    assert (stage.learning_rate, stage.prompts_per_step, stage.samples_per_prompt, stage.updates_per_rollout) == (3e-6, 512, 16, 16)
    assert (stage.max_completion_tokens, stage.refresh_reference_every) == (32768, 400)


def test_a_plain_algorithm_changes_no_setting(load: Callable[..., LoadedRecipe], sound: str) -> None:
    stage = load(sound, "stages.reason.algorithm=gspo").recipe.stages[1]
    assert (stage.learning_rate, stage.prompts_per_step, stage.max_completion_tokens) == (1e-6, 16, 256)


def test_every_difference_is_named(load: Callable[..., LoadedRecipe], sound: str) -> None:
    from grpo.algorithm import TABLE
    from grpo.stages.rl import deviations

    changes = ["stages.reason.prompts_per_step=64", "stages.reason.kl_coef=0.0", "stages.reason.clip_high=0.28"]
    stage = load(sound, *OVERRIDES, *changes).recipe.stages[1]
    assert deviations(stage, TABLE["r1_stage1"]) == [
        "prompts_per_step is 64 instead of 512",
        "kl_coef is 0.0 instead of 0.001",
        "clip_high is 0.28 instead of 10.0",
        "minibatches shuffle whole groups instead of single samples, so that a prompt is computed once for all of its samples",
    ]


@pytest.mark.parametrize("algorithm", ["grpo", "dapo"])
def test_an_algorithm_as_it_stands_differs_in_nothing(load: Callable[..., LoadedRecipe], sound: str, algorithm: str) -> None:
    from grpo.algorithm import TABLE
    from grpo.stages.rl import deviations

    assert deviations(load(sound, f"stages.reason.algorithm={algorithm}").recipe.stages[1], TABLE[algorithm]) == []
