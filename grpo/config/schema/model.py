"""The model that a run starts from, the tags of its completions, and the adapters that may be trained instead of all its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from grpo.config.schema.base import Hint, NonNegativeFloat, Strict

Document = Literal["worked", "guess", "untagged", "arithmetic"]


class MadeModel(Strict):
    """A tiny model that is created and pre-trained for the run (grpo/resources/tiny_models.py). It is cached by the hash of these settings."""

    make: Literal["tiny_qwen2", "tiny_llama"] = Field(description="Architecture of the model.")
    seed: int = Field(0, description="Seed of the initial weights.")
    hidden_size: PositiveInt = Field(192, description="Width of the model.")
    layers: PositiveInt = Field(4, description="Number of transformer layers.")
    heads: PositiveInt = Field(2, description="Number of attention heads. hidden_size must be a multiple of it.")
    problems: Annotated[
        str, Hint("the data source that the corpus is written from; its rows need a column expression, such as '3 + 4'")
    ] = Field(
        description="Data source whose problems the pre-training corpus is written from. Its rows need a column expression, such as '3 + 4'."
    )
    pretrain_updates: Annotated[int, Field(ge=0)] = Field(
        400, description="Number of optimizer steps of pre-training. 0 leaves the weights random."
    )
    pretrain_learning_rate: PositiveFloat = Field(3e-3, description="Highest learning rate of pre-training.")
    pretrain_seed: int = Field(100, description="Seed of the pre-training corpus.")
    corpus: Annotated[dict[Document, NonNegativeFloat], Hint("the share of each kind of document at the end")] = Field(
        default_factory=dict,
        description="Share of each kind of document at the end of pre-training: worked, guess, untagged, arithmetic.",
    )


class PretrainedModel(Strict):
    """A model that exists already: a folder in Hugging Face format, or the id of a model on the Hugging Face Hub."""

    path: str = Field(description="Folder of the model, or its id on the Hub.")


class Tags(Strict):
    """Names of the tags around the thinking and the answer of a completion, without brackets."""

    think: str = Field("think", description="Name of the tag around the thinking.")
    answer: str = Field("answer", description="Name of the tag around the answer.")

    @property
    def texts(self) -> tuple[str, ...]:
        """The four tags as they are written."""
        return tuple(f"<{slash}{name}>" for name in (self.think, self.answer) for slash in ("", "/"))


class Lora(Strict):
    """Train low-rank adapters instead of all weights. The frozen weights below them are the reference model, at no extra memory."""

    rank: PositiveInt = Field(16, description="Rank of the adapters.")
    alpha: PositiveFloat = Field(32.0, description="Scale of the adapters: their output is multiplied by alpha / rank.")
    targets: Annotated[
        list[str] | Literal["all-linear"],
        Hint("names of linear layers, such as q_proj; never the output layer, embeddings, routers or fused experts"),
    ] = Field(
        "all-linear",
        description="Names of the linear layers that get an adapter, such as q_proj. The output layer, embeddings, routers and fused experts "
        "never get one.",
    )
