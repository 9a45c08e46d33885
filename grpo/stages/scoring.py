"""From completions to scored groups: what rewards are told of a sample, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence

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
                "tokens": completion.tokens,
                "num_tokens": completion.num_tokens,
            }
        )
        for prompt, drawn in zip(prompts, completions, strict=True)
        for completion in drawn
    ]


def score_groups(runtime: RewardRuntime, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> list[Group]:
    """Group i holds prompt i and its samples, each with its reward and parts: sample j is completion j of prompt i."""
    scored = iter(runtime.score(score_inputs(prompts, completions)))
    groups = []
    for prompt, drawn in zip(prompts, completions, strict=True):
        judged = [(completion, next(scored)) for completion in drawn]
        groups.append(Group(prompt, tuple(Sample(prompt.id, completion, score.reward, score.parts) for completion, score in judged)))
    return groups
