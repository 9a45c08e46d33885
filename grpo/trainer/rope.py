"""Up to which length are a model's rotary frequencies its own? Two rope types take them from the longest sequence of a micro-batch."""

from __future__ import annotations

import math

from transformers import PretrainedConfig


def fixed_up_to(config: PretrainedConfig) -> tuple[float, str]:
    """The most positions of a micro-batch in which every token is computed as it is alone, and the rope type that sets the bound.

    Beyond it transformers recomputes the frequencies of ``dynamic`` for the highest position in the micro-batch, and takes the long factors of
    ``longrope`` for all of it, so that a short sequence has other log-probabilities beside a long one. Infinite for all other types.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    of_layers = [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]
    bounds = [(math.inf, "")]
    for each in of_layers:
        rope_type = str(each.get("rope_type"))
        if "dynamic" in rope_type:
            bounds.append((float(text.max_position_embeddings), rope_type))
        elif rope_type == "longrope":
            bounds.append((float(each.get("original_max_position_embeddings") or text.max_position_embeddings), rope_type))
    return min(bounds)


def rope_problem(config: PretrainedConfig, longest: int) -> str | None:
    """What is wrong with sequences of up to ``longest`` tokens, and what to do; None where nothing is."""
    bound, rope_type = fixed_up_to(config)
    if longest <= bound:
        return None
    return (
        f"rope type {rope_type!r} is supported up to {bound:,.0f} tokens, and sequences may have {longest:,}; lower max_prompt_tokens + "
        f"max_completion_tokens (sft and distill: max_tokens) to {bound:,.0f}, or choose a model with another rope type: beyond its original "
        "context this one computes a short sequence differently when a longer one is in the same micro-batch"
    )
