"""The keys of stages that learn from written completions: batches, phases, validation, and keeping earlier stages' rows alive."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from grpo.config.schema.base import Hint, NonNegativeFloat, Strict
from grpo.config.schema.training import OptimizerKeys


class ByDifficulty(Strict):
    """How the difficulty of a row is known: from a column, measured or given."""

    by: str = Field("pass_rate", description="Column that says how difficult a row is.")
    easy: Annotated[Literal["high", "low"], Hint("high: a large value of the column means an easy prompt, as of pass_rate")] = Field(
        "high", description="Which end of the column is easy. high: a large value means an easy prompt, as with pass_rate."
    )


class Thirds(Strict):
    """Weights of the easiest, the middle and the hardest third of the rows in a mixture."""

    easy: NonNegativeFloat = Field(0.0, description="Weight of the easiest third of the rows.")
    medium: NonNegativeFloat = Field(0.0, description="Weight of the middle third of the rows.")
    hard: NonNegativeFloat = Field(0.0, description="Weight of the hardest third of the rows.")

    @property
    def weights(self) -> tuple[float, float, float]:
        return self.easy, self.medium, self.hard


class SupervisedPhase(Strict):
    """A number of consecutive updates with their own mixture of rows, batch size and learning rate."""

    updates: Annotated[PositiveInt, Hint("number of updates of the phase")] = Field(description="Number of updates of the phase.")
    mix: Thirds | None = Field(None, description="Weight of each third of the rows, by difficulty. By default all rows count alike.")
    learning_rate_frac: Annotated[float, Field(gt=0, le=1), Hint("of the stage's learning rate")] = Field(
        1.0, description="Factor by which the stage's learning rate is multiplied in this phase."
    )
    batch_size: PositiveInt | None = Field(None, description="Number of rows per update. By default it is the stage's batch_size.")
    weight_decay: NonNegativeFloat | None = Field(None, description="Weight decay. By default it is the stage's.")


class SupervisedCurriculum(ByDifficulty):
    """Phases instead of epochs: easy rows first, at a low learning rate, then harder ones, then all."""

    phases: Annotated[list[SupervisedPhase], Field(min_length=1)] = Field(description="Phases, in order.")


class Validation(Strict):
    """Measure the model at intervals. If it got worse, training goes back to the best model so far and continues at a lower rate."""

    every: Annotated[PositiveInt, Hint("updates between measurements")] = Field(
        description="Number of updates between measurements. The model is always measured after the last update."
    )
    by: Annotated[Literal["loss", "accuracy"], Hint("loss: on rows held back from the stage's; accuracy: the recipe's evaluation")] = Field(
        "loss", description="What is measured. loss: the loss on rows held back from the stage's. accuracy: the recipe's evaluation."
    )
    rows: PositiveInt = Field(
        64,
        description="Number of the stage's rows that are held back for the loss and never trained on. All rows of a prompt stay together.",
    )
    tolerance: NonNegativeFloat | None = Field(
        None,
        description="Difference to the best measurement that does not count as a drop. By default it is 0.01 of the loss, or one standard error "
        "of the accuracy.",
    )
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Factor by which the learning rate is multiplied at each drop, until the stage ends."
    )


class Ewc(Strict):
    """Elastic weight consolidation: weights that matter for the rows of earlier stages are held near their values at the start."""

    coef: Annotated[PositiveFloat, Hint("lambda of the paper's equation 3")] = Field(
        description="Strength of the penalty: lambda in equation 3 of the paper (arXiv:1612.00796)."
    )
    rows: PositiveInt = Field(256, description="Number of rows of earlier stages from which the importance of each weight is measured.")


class SupervisedKeys(OptimizerKeys):
    """The keys of stages of kind sft and distill."""

    epochs: PositiveInt = Field(1, description="Number of times each row is seen.")
    checkpoint_every: PositiveInt | None = Field(
        50, description="Number of updates between checkpoints. With null only a run that is stopped leaves one."
    )
    batch_size: PositiveInt = Field(32, description="Number of rows per update.")
    max_tokens: PositiveInt = Field(1024, description="Maximum length of a row in tokens. Longer rows are left out and counted.")
    curriculum: SupervisedCurriculum | None = Field(None, description="Phases by difficulty, instead of epochs.")
    validation: Validation | None = Field(None, description="Measure the model at intervals, and go back to the best one on a drop.")
    replay: Annotated[float, Field(ge=0, lt=1), Hint("share of every batch that comes from earlier stages' rows")] = Field(
        0.0, description="Share of every batch that consists of earlier stages' rows, which are added to the stage's own batch_size rows."
    )
    ewc: Ewc | None = Field(None, description="Hold the weights that earlier stages' rows need (arXiv:1612.00796).")
    earlier: list[str] | None = Field(
        None, description="Stages whose rows replay and ewc use. By default these are all earlier stages of kind sft or distill with data."
    )

    def num_updates(self, num_rows: int) -> int:
        """Return the number of updates that a stage makes from ``num_rows`` rows of its own."""
        if self.curriculum is not None:
            return sum(phase.updates for phase in self.curriculum.phases)
        return -(-num_rows // self.batch_size) * self.epochs
