"""From completions to scored groups: what the rewards are given of a sample, and what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo.config import RewardUse
from grpo.types import Group, Sample
from rewards import RewardRuntime, ScoreInput
from rollout.types import Completion, Prompt


def score_inputs(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> list[ScoreInput]:
    """One input a sample, prompt by prompt: the row's columns, and the reserved names that describe the completion."""
    return [
        ScoreInput(
            {
                **prompt.columns,
                "prompt_id": prompt.id,
                "prefill": prompt.prefill,
                "completion": completion.text,
                "finish": completion.finish,
                "tokens": tuple(completion.tokens.tolist()),
                "num_tokens": completion.num_tokens,
            },
            group=number,
        )
        for number, (prompt, samples) in enumerate(zip(prompts, completions, strict=True))
        for completion in samples
    ]


def score_groups(
    runtime: RewardRuntime,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    weights: Mapping[str, float] | None = None,
) -> list[Group]:
    """Group i holds prompt i and its samples, each with its reward and parts: sample j is completion j of prompt i.

    weights: those of the rewards to run, by name; by default all, as specified.
    """
    scored = iter(runtime.score(score_inputs(prompts, completions), weights))
    groups = []
    for prompt, sampled in zip(prompts, completions, strict=True):
        judged = [(completion, next(scored)) for completion in sampled]
        samples = (Sample(prompt.id, completion, score.reward, score.parts, score.notes) for completion, score in judged)
        groups.append(Group(prompt, tuple(samples)))
    return groups


def weights_at(uses: Sequence[RewardUse], update: int) -> dict[str, float]:
    """The weights in force once so many updates are made. A reward whose schedule is at 0 is left out, and so not run; one whose only
    weight is 0 is run and watched."""
    return {use.part: use.weight_at(update) for use in uses if use.weight_at(update) != 0 or not use.is_scheduled}
