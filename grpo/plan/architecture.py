"""What shapes does a stage's model have? From its config.json, which is known without weights: here, in the hub's local copy, or shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config import AnyStage, MadeModel, PretrainedModel, Recipe
from grpo.util.model_folder import hub_copy, local_folder, positions_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from grpo.trainer.shapes import Shapes

SHIPPED = Path(__file__).parent / "architectures"  # a config.json under each hub id: shapes alone, for models that shipped recipes name


@dataclass(frozen=True)
class Architecture:
    """``config`` is None where no config.json is at hand. ``folder`` is where weights and tokenizer are, None where they are elsewhere."""

    ref: str
    config: Mapping[str, Any] | None
    known_from: str
    folder: Path | None = None
    is_made: bool = False

    @property
    def is_downloaded_by_the_run(self) -> bool:
        return self.folder is None and not self.is_made

    @cached_property
    def parameters(self) -> int:
        """All of them, counted in a model without weights. Loads torch."""
        from grpo.trainer.memory_budget import count_parameters

        assert self.config is not None
        return count_parameters(json.dumps(self.config)).all

    @property
    def layers(self) -> int:
        return self._shapes.layers

    @property
    def head_dim(self) -> int:
        return self._shapes.head_dim

    @property
    def attention_width(self) -> int:
        return self.head_dim * self._shapes.heads

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers in two bytes each."""
        return 2 * 2 * self.layers * self._shapes.kv_heads * self.head_dim

    @property
    def activation_bytes_per_token(self) -> int:
        """What a token leaves behind in a forward pass. Loads torch."""
        from grpo.trainer.memory_budget import activation_bytes

        return activation_bytes(self._pretrained, checkpointed=False)

    @property
    def positions(self) -> int | None:
        assert self.config is not None
        return positions_of(self.config)

    @cached_property
    def _pretrained(self) -> PretrainedConfig:
        from grpo.trainer.shapes import config_from_json

        return config_from_json(json.dumps(self.config))

    @cached_property
    def _shapes(self) -> Shapes:
        from grpo.trainer.shapes import Shapes

        return Shapes.of(self._pretrained)


def architectures(recipe: Recipe, base: Path) -> dict[str, Architecture]:
    """Of "base" and of every stage, by name: what a stage makes has the shapes of what it starts from. ``base``: the recipe's folder."""
    found = {"base": architecture_of(recipe.model, base)}
    for stage in recipe.stages:
        found[stage.name] = found[stage.from_] if isinstance(stage.from_, str) else architecture_of(stage.from_, base)
    return found


def models_drawn_from(stage: AnyStage, recipe: Recipe, known: Mapping[str, Architecture]) -> list[Architecture]:
    """The models that a stage's engines hold in turn: the one it samples, and the one it measures."""
    teacher = getattr(stage, "teacher", None)
    is_measured = stage.kind == "eval" or (stage.kind != "reject" and recipe.evaluation is not None)
    samples = stage.kind in ("rl", "reject")
    return [*([known[teacher]] if teacher else []), *([known[stage.name]] if samples or is_measured else [])]


def architecture_of(model: str | MadeModel | PretrainedModel, base: Path) -> Architecture:
    """Of a folder, a hub id, or a model that the run makes. Nothing is downloaded."""
    if isinstance(model, MadeModel):
        from grpo.resources.tiny_models import VOCABULARY, shapes_of

        return Architecture(model.make, shapes_of(model, VOCABULARY), "made by the run", is_made=True)
    ref = model if isinstance(model, str) else model.path
    folder = local_folder(ref, base)
    if folder is not None and (folder / "config.json").is_file():
        return Architecture(ref, _read(folder / "config.json"), "its folder", folder.resolve())
    if copy := hub_copy(ref):
        has_weights = any(copy.glob("*.safetensors"))
        return Architecture(ref, _read(copy / "config.json"), "the hub's local copy", copy if has_weights else None)
    if (shipped := SHIPPED / ref / "config.json").is_file():
        return Architecture(ref, _read(shipped), "shapes shipped with the toolkit")
    return Architecture(ref, None, "not known: no config.json of it is on this machine")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
