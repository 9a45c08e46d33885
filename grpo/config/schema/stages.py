"""The five kinds of stages, with their keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from grpo.algorithm.names import NAMES
from grpo.algorithm.table import TABLE
from grpo.config.schema.base import Fraction, Hint, NonNegativeFloat, Strict, TopP
from grpo.config.schema.data import Mixture
from grpo.config.schema.model import MadeModel, PretrainedModel
from grpo.config.schema.rewards import Evaluation, RewardUse
from grpo.config.schema.supervised import ByDifficulty, SupervisedKeys
from grpo.config.schema.training import OptimizerKeys


class StageBase(Strict):
    """The keys of every stage."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)] = Field(
        description="Name of the stage, for other stages, its folder and the command line."
    )
    seed: int | None = Field(None, description="Seed of the stage. By default it is the recipe's.")


class SftStage(StageBase, SupervisedKeys):
    """Supervised fine-tuning on rows that have a prompt and a completion."""

    kind: Literal["sft"] = Field(description="Kind of the stage: sft, rl, reject, distill or eval.")
    from_: str = Field("base", alias="from", description="Model to start from: base, or an earlier stage that makes one.")
    data: Mixture = Field(description="Data sources, or datasets of earlier stages, whose rows have a prompt and a completion.")


class Phase(Strict):
    """From one step on, prompts are taken from the easiest fraction of all prompts."""

    from_step: Annotated[int, Field(ge=0), Hint("the first step is 0")] = Field(
        description="Step at which the phase begins. The first step is 0."
    )
    easiest_frac: Annotated[float, Field(gt=0, le=1)] = Field(description="Fraction of all prompts, the easiest ones, that are used.")


class Curriculum(ByDifficulty):
    """Easy prompts first: a column says how difficult each prompt is, and phases say how many of them are used from which step on."""

    phases: Annotated[list[Phase], Field(min_length=1)] = Field(description="Phases, in order of their first step.")


class DynamicSampling(Strict):
    """DAPO's dynamic sampling (arXiv:2503.14476, section 3.2): zero-variance groups are replaced by groups of new prompts.

    Unlike the paper's, it is bounded.
    """

    max_rounds: Annotated[PositiveInt, Hint("rounds of replacing in one step")] = Field(
        3, description="Maximum number of rounds of replacing in one step. After them the step continues with the groups it has."
    )


class RlStage(StageBase, OptimizerKeys):
    """Reinforcement learning: sample, score and update, in steps."""

    kind: Literal["rl"] = Field(description="Kind of the stage: sft, rl, reject, distill or eval.")
    from_: str = Field("base", alias="from", description="Model to start from: base, or an earlier stage that makes one.")
    prompts: Mixture = Field(description="Data sources of the prompts.")
    curriculum: Curriculum | None = Field(None, description="Curriculum that uses easy prompts first.")
    dynamic_sampling: DynamicSampling | None = Field(
        None, description="Replace zero-variance groups, which give no advantage, by groups of new prompts."
    )
    algorithm: str = Field("grpo", description="Name of an algorithm (docs/algorithms.md), or your own as ./file.py:name.")
    rewards: Annotated[list[RewardUse], Field(min_length=1)] = Field(description="Rewards, whose weighted sum is the reward of a sample.")
    steps: PositiveInt = Field(description="Number of steps. Each is one rollout and the updates made from it.")
    prompts_per_step: PositiveInt = Field(16, description="Number of prompts, and so of groups, in each rollout.")
    samples_per_prompt: Annotated[int, Field(ge=2), Hint("the advantage of a group of one is always 0")] = Field(
        16,
        description="Number of completions sampled for each prompt: the group size. An advantage is a reward minus its group's mean, so it must "
        "be at least 2.",
    )
    updates_per_rollout: PositiveInt = Field(1, description="Number of optimizer steps among which the groups of one rollout are divided.")
    max_prompt_tokens: PositiveInt = Field(512, description="Maximum prompt length. Longer prompts are left out and counted.")
    max_completion_tokens: PositiveInt = Field(256, description="Maximum completion length. A longer completion is truncated.")
    temperature: PositiveFloat = Field(1.0, description="Sampling temperature.")
    top_p: TopP = Field(1.0, description="Nucleus sampling: sample from the smallest set of tokens with this total probability.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Sample from this many most likely tokens. 0 means all.")
    min_p: Fraction = Field(0.0, description="Leave out tokens that are less likely than this fraction of the most likely token.")
    stop: list[str] = Field(default_factory=list, description="Texts that end a completion.")
    kl_coef: NonNegativeFloat | None = Field(
        None, description="Coefficient of the KL divergence from the reference model. By default it is the algorithm's."
    )
    kl_in: Literal["loss", "reward"] | None = Field(
        None, description="Where the KL divergence counts: in the loss or in the reward. By default it is the algorithm's choice."
    )
    clip_low: PositiveFloat | None = Field(
        None, description="The ratio is clipped below 1 minus this value. By default it is the algorithm's."
    )
    clip_high: PositiveFloat | None = Field(
        None, description="The ratio is clipped above 1 plus this value. By default it is the algorithm's."
    )
    importance: Annotated[Literal["token", "sequence", "none"] | None, Hint("truncated importance sampling")] = Field(
        None,
        description="Truncated importance sampling, per token or per sequence, which corrects for the mismatch between engine and trainer. By "
        "default it is the algorithm's choice.",
    )
    importance_cap: PositiveFloat | None = Field(
        None, description="Maximum weight that truncated importance sampling gives a token. By default it is the algorithm's."
    )
    mask_truncated: Annotated[bool | None, Hint("exclude truncated completions from the loss")] = Field(
        None, description="Exclude completions that reached max_completion_tokens from the loss. By default it is the algorithm's choice."
    )
    refresh_reference_every: PositiveInt | None = Field(
        None, description="Number of updates after which the reference model is replaced by the policy. By default it never is."
    )
    eval_every: PositiveInt | None = Field(None, description="Number of steps between measurements on the held-out set.")

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, keys: Any) -> Any:
        """Fill in the settings of a published run for whatever the recipe leaves open, if the algorithm names one."""
        if not isinstance(keys, dict) or keys.get("algorithm") not in NAMES:
            return keys
        return {**TABLE[keys["algorithm"]].published, **keys}


class Keep(Strict):
    """Which sampled completions are kept by rejection sampling."""

    min_reward: Annotated[dict[str, float], Hint("reward: minimum value")] = Field(
        default_factory=lambda: {"math": 1.0}, description="Minimum value of each reward, by its name."
    )
    per_prompt: PositiveInt = Field(1, description="Maximum number of completions kept for each prompt.")
    max_completion_tokens: PositiveInt | None = Field(None, description="Maximum length. Longer completions are dropped.")
    language: Annotated[str | None, Hint("null switches the filter off")] = Field(
        "en", description="Language that the thinking must be in. null switches the filter off."
    )
    min_language_share: Fraction = Field(0.8, description="Minimum share of the words of the thinking that must be in this language.")
    max_repetition: Fraction = Field(0.5, description="Maximum share of repeated 4-grams.")
    code_blocks: bool = Field(False, description="Keep completions that have code blocks.")
    duplicates: bool = Field(False, description="Keep completions that equal an earlier one of the same prompt.")


class Mix(Strict):
    """Rows of another source that are added to the dataset of a stage."""

    use: str = Field(description="Name of a data source, or of an earlier stage that makes a dataset.")
    rows: PositiveInt | None = Field(None, description="Maximum number of rows. By default all are used.")


class SamplingKeys(Strict):
    """The keys of stages that sample completions to learn from."""

    samples_per_prompt: PositiveInt = Field(8, description="Number of completions sampled for each prompt.")
    temperature: PositiveFloat = Field(1.0, description="Sampling temperature.")
    top_p: TopP = Field(1.0, description="Nucleus sampling: sample from the smallest set of tokens with this total probability.")
    min_p: Fraction = Field(0.0, description="Leave out tokens that are less likely than this fraction of the most likely token.")
    max_prompt_tokens: PositiveInt = Field(512, description="Maximum prompt length. Longer prompts are left out and counted.")
    max_completion_tokens: PositiveInt = Field(256, description="Maximum completion length. A longer completion is truncated.")


class RejectStage(StageBase, SamplingKeys):
    """Rejection sampling: sample completions, keep the good ones, and make a dataset of them."""

    kind: Literal["reject"] = Field(description="Kind of the stage: sft, rl, reject, distill or eval.")
    from_: str = Field("base", alias="from", description="Model to start from: base, or an earlier stage that makes one.")
    prompts: Mixture = Field(description="Data sources of the prompts.")
    rows: PositiveInt | None = Field(None, description="Maximum number of prompts. By default all are used.")
    rewards: Annotated[list[RewardUse], Field(min_length=1)] = Field(description="Rewards, whose weighted sum is the reward of a sample.")
    keep: Keep = Field(Keep(), description="Which completions are kept.")
    mix: list[Mix] = Field(default_factory=list, description="Rows of other sources that are added to the kept ones.")


class DistillStage(StageBase, SupervisedKeys, SamplingKeys):
    """Distillation: a student is trained on a teacher's completions, or on rows that are written already."""

    kind: Literal["distill"] = Field(description="Kind of the stage: sft, rl, reject, distill or eval.")
    from_: str | MadeModel | PretrainedModel = Field(
        alias="from", description="Student to start from: base, an earlier stage, another model, or a model created for the run."
    )
    teacher: str | None = Field(
        None, description="Stage or model that writes the completions to learn from. Leave it out to learn from data."
    )
    prompts: Mixture | None = Field(None, description="Data sources of the prompts that the teacher completes.")
    rows: PositiveInt | None = Field(None, description="Maximum number of prompts. By default all are used.")
    rewards: list[RewardUse] = Field(default_factory=list, description="Rewards, whose weighted sum is the reward of a sample.")
    keep: Keep = Field(Keep(), description="Which completions are kept.")
    data: Mixture | None = Field(
        None, description="Data sources, or datasets of earlier stages, whose rows have a prompt and a completion."
    )
    samples_per_prompt: PositiveInt = Field(1, description="Number of completions sampled for each prompt.")


class EvalStage(StageBase):
    """Measure a model on a held-out set."""

    kind: Literal["eval"] = Field(description="Kind of the stage: sft, rl, reject, distill or eval.")
    from_: str = Field("base", alias="from", description="Model to start from: base, or an earlier stage that makes one.")
    evaluation: Evaluation | None = Field(
        None, description="Held-out set and how the model is measured on it. By default it is the recipe's evaluation."
    )


AnyStage = SftStage | RlStage | RejectStage | DistillStage | EvalStage
Stage = Annotated[AnyStage, Field(discriminator="kind")]
