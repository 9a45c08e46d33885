"""How wide and how deep is a model? From its config, whatever names its family gives to these numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from grpo.errors import TrainingError

WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff")  # Llama, OPT, Falcon and DBRX, GPT-2, T5
USUAL_EXPANSION = 4  # of GPT-2, Bloom, GPT-J, MPT, ..., whose configs need not say it


@dataclass(frozen=True)
class Shapes:
    """``width``: of the feed-forward layers that a token goes through. Where layers differ, the largest."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int

    @staticmethod
    def of(config: PretrainedConfig) -> Shapes:
        text = config.get_text_config()
        hidden, heads = _number(text, "hidden_size"), _number(text, "num_attention_heads")
        if not hidden or not heads:
            raise TrainingError(f"config.json of a {config.model_type} says no hidden_size or no num_attention_heads; take another model")
        return Shapes(
            hidden=hidden,
            layers=_number(text, "num_hidden_layers") or 1,
            heads=heads,
            kv_heads=_kv_heads(text) or heads,
            head_dim=_number(text, "head_dim") or hidden // heads,
            width=_width(text) or USUAL_EXPANSION * hidden,
        )


def config_from_json(text: str) -> PretrainedConfig:
    """Raises TrainingError where transformers knows no such architecture, or not with these settings."""
    settings = json.loads(text)
    family = settings.pop("model_type", None)
    try:
        return AutoConfig.for_model(family, **settings)
    except (ValueError, TypeError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise TrainingError(f"transformers cannot read config.json of a {family}: {first[:200]}; take another model") from error


def _kv_heads(text: PretrainedConfig) -> int | None:
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1  # Falcon-7B's and GPT-BigCode's, whatever number stands beside it
    return _number(text, "num_key_value_heads") or _number(text, "num_kv_heads") or _number(text, "kv_n_heads")


def _width(text: PretrainedConfig) -> int | None:
    routed, of_an_expert = _number(text, "num_experts_per_tok"), _number(text, "moe_intermediate_size")
    if routed and of_an_expert:
        return routed * of_an_expert
    return next((width for name in WIDTHS if (width := _number(text, name))), None)


def _number(text: PretrainedConfig, name: str) -> int | None:
    """The largest of a setting's values: of the config itself, of its parts, of its layers. None where there is no such setting."""
    return max((value for value in _values(text, name) if value), default=None)


def _values(text: Any, name: str) -> Iterator[int]:
    name = (getattr(text, "attribute_map", None) or {}).get(name, name)
    try:
        value = getattr(text, name, None)
    except RuntimeError:  # transformers' own, for what differs by layer
        value = [getattr(layer, name, None) for layer in text.per_layer_config]
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, int) and not isinstance(item, bool):
            yield item
    for part in ("ffn_config", "attn_config"):
        if (inner := getattr(text, part, None)) is not None:
            yield from _values(inner, name)
