"""A whole recipe: the model, named data sources, the machinery, and stages in order."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveFloat

from grpo.config.schema.base import Hint, Strict
from grpo.config.schema.data import DataSource, source_names
from grpo.config.schema.model import MadeModel, PretrainedModel, Tags
from grpo.config.schema.rewards import Evaluation
from grpo.config.schema.rollout import Rollout
from grpo.config.schema.stages import DistillStage, RejectStage, SftStage, Stage
from grpo.config.schema.training import Hardware, Trainer


class Recipe(Strict):
    """A whole run: a model, named data sources, and stages in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)] = Field(
        description="Name of the run. Its folder is runs/NAME by default."
    )
    description: str = Field("", description="One line about the recipe, for lists and reports.")
    seed: int = Field(0, description="Seed from which everything random follows.")
    model: str | MadeModel | PretrainedModel = Field(
        description="Base model: a folder, an id on the Hugging Face Hub, or a tiny model that is created for the run."
    )
    template: Annotated[str, Hint("r1_zero, chat (the tokenizer's own), plain, or ./file.jinja")] = Field(
        "r1_zero", description="Prompt template: r1_zero, chat (the tokenizer's own chat template), plain, or ./file.jinja."
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="Variables for the chat template beside the messages, such as {enable_thinking: false}."
    )
    tags: Tags = Field(Tags(), description="Names of the tags around the thinking and the answer.")
    data: dict[str, DataSource] = Field(default_factory=dict, description="Data sources, by name.")
    evaluation: Evaluation | None = Field(None, description="Held-out set and how models are measured on it.")
    deterministic: bool = Field(True, description="Assign prompts to fixed workers, so that a run repeats bit for bit on a CPU.")
    rollout: Rollout = Field(Rollout(), description="Rollout workers, which generate completions.")
    trainer: Trainer = Field(Trainer(), description="Processes that train the policy.")
    hardware: Hardware = Field(Hardware(), description="Machines that grpo plan assumes. By default it is this machine.")
    reward_deadline_s: PositiveFloat = Field(5.0, description="Maximum time that one reward may take for one sample, in seconds.")
    canary: Annotated[str | None, Hint("a correct completion around {answer}; an empty string skips the test")] = Field(
        None,
        description="Correct completion around {answer}, with which the accuracy reward is tested before training. By default it is a thought "
        "and an answer in the recipe's tags. An empty string skips the test.",
    )
    trackers: Annotated[list[str], Hint("tensorboard, wandb, mlflow, trackio or ./file.py:Class")] = Field(
        default_factory=list,
        description="Experiment trackers: tensorboard, wandb, mlflow, trackio or ./file.py:Class. The run's own files are always written.",
    )
    stages: Annotated[list[Stage], Field(min_length=1)] = Field(description="Stages, in the order in which they run.")


def imitated_sources(recipe: Recipe) -> set[str]:
    """Return the data sources whose rows models are trained to imitate, so that each row needs a completion."""
    taught = [stage.data for stage in recipe.stages if isinstance(stage, SftStage | DistillStage)]
    mixed = [mix.use for stage in recipe.stages if isinstance(stage, RejectStage) for mix in stage.mix]
    return {name for sources in [*taught, *mixed] for name in source_names(sources)} & recipe.data.keys()


def kept_alive(recipe: Recipe, stage: SftStage | DistillStage) -> list[SftStage | DistillStage]:
    """Return the earlier stages whose rows ``stage`` replays or protects with EWC."""
    if not stage.replay and stage.ewc is None:
        return []
    names = [other.name for other in recipe.stages]
    before = [other for other in recipe.stages[: names.index(stage.name)] if isinstance(other, SftStage | DistillStage) and other.data]
    return [other for other in before if stage.earlier is None or other.name in stage.earlier]
