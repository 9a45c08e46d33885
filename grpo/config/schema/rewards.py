"""The rewards of a stage, and the evaluation that measures every model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt

from grpo.config.schema.base import Fraction, Hint, NonNegativeFloat, Strict, TopP


class RewardUse(Strict):
    """One reward: which function it is, its weight, and the function's own settings, which stand beside these keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: Annotated[str, Hint("a shipped reward, ./file.py:name or package.module:name")] = Field(
        description="Name of a shipped reward, or a function as ./file.py:name or package.module:name."
    )
    name: str | None = Field(None, description="Name of the reward in metrics. By default it is the name of the function.")
    weight: Annotated[
        float | list[list[float]],
        Hint("in an rl stage also [[update, weight], ...], each of which holds from that update on; before the first it is 0"),
    ] = Field(
        1.0,
        description="Weight of the reward in the sum. In an rl stage it may also be a schedule [[update, weight], ...]: each weight holds from "
        "that update on, and before the first one the weight is 0.",
    )
    required: Annotated[bool | None, Hint("drop a sample that this reward cannot judge")] = Field(
        None, description="Drop a sample that this reward cannot score. By default only math does."
    )
    on_error: Literal["skip", "stop"] = Field(
        "skip", description="What happens when the reward fails. skip: continue without the samples on which it failed. stop: end the run."
    )
    max_error_frac: Fraction = Field(
        0.5, description="With on_error: skip, the run ends if the reward fails on more than this fraction of a step's samples."
    )

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def part(self) -> str:
        """Its name in metrics and in keep.min_reward: the given name, or that of its function."""
        return self.name or self.use.rpartition(":")[2]

    @property
    def is_scheduled(self) -> bool:
        return isinstance(self.weight, list)

    def weight_at(self, update: int) -> float:
        """Return the weight after ``update`` updates. It depends on that number alone, so a resumed run has the same weights."""
        if not isinstance(self.weight, list):
            return self.weight
        return next((weight for since, weight in reversed(self.weight) if since <= update), 0.0)


class Evaluation(Strict):
    """The held-out problems, and how every stage that makes a model is measured on them. The defaults are the decoding of the R1 paper."""

    prompts: str = Field(description="Data source with the held-out problems.")
    rows: PositiveInt | None = Field(None, description="Maximum number of problems. By default all are used.")
    samples_per_prompt: PositiveInt = Field(1, description="Number of completions sampled for each problem.")
    temperature: NonNegativeFloat = Field(0.6, description="Sampling temperature. 0 is greedy decoding.")
    top_p: TopP = Field(0.95, description="Nucleus sampling: sample from the smallest set of tokens with this total probability.")
    min_p: Fraction = Field(0.0, description="Leave out tokens that are less likely than this fraction of the most likely token.")
    max_prompt_tokens: PositiveInt | None = Field(
        None,
        description="Maximum prompt length. Longer prompts are left out and counted. By default it is what the model's context leaves beside "
        "a completion.",
    )
    max_completion_tokens: PositiveInt = Field(256, description="Maximum completion length. A longer completion is truncated.")
    seed: int = Field(1234, description="Seed of the sampling.")
    pass_at: list[PositiveInt] = Field(default_factory=lambda: [1], description="Values of k for which pass@k is reported.")
    accuracy: RewardUse = Field(RewardUse(use="math"), description="Reward that decides whether an answer is correct.")
    well_formed: RewardUse | None = Field(
        RewardUse(use="format"), description="Reward that decides whether a completion is well-formed. With null every form is accepted."
    )
    lenient: RewardUse = Field(
        RewardUse(use="math", extract="last_number"),
        description="Reward that decides whether an answer is correct, whatever the form of the completion.",
    )
