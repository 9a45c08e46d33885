"""Does this model compute on packed tokens what it computes on one sequence a row? Asked once, at start, before anything is learned."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from grpo.errors import TrainingError
from grpo.policy.attention import NO_TABLE, ordinary_attention
from grpo.policy.batch import make_batch
from grpo.policy.logprobs import completion_logprobs
from grpo.policy.packing import pack

MAX_LAYOUT_GAP = 1e-3  # float32 rounding is a hundredth of it; a token that sees a sibling, or loses its prompt, moves by tenths
NOT_COMPUTED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def check_layout(model: PreTrainedModel) -> None:
    """Two prompts with two completions each, packed and plain, in float32.

    Raises TrainingError where the mean absolute difference of their log-probabilities exceeds MAX_LAYOUT_GAP, or where the model computes
    something between hidden states and logits that the trainer doesn't know of.
    """
    check_head(model)
    name = type(model).__name__
    try:
        gap = _layout_gap(model)
    except (TypeError, ValueError) as error:
        reason = str(error).split(". ")[0]
        raise TrainingError(f"{name}'s attention cannot be replaced by the trainer's ({reason}); choose another model") from error
    if not gap <= MAX_LAYOUT_GAP:
        raise TrainingError(
            f"{name} gives other log-probabilities on packed tokens than on one sequence a row: they differ by {gap:.4f} a token on average; "
            "its layers mix tokens by something else than transformers' attention interface; choose another model"
        )


def check_head(model: PreTrainedModel) -> None:
    """Raises TrainingError where the model's config alone says that the trainer does not compute it. Needs no weights."""
    name, config = type(model).__name__, model.config.get_text_config()
    for setting in NOT_COMPUTED:
        if getattr(config, setting, None) not in (None, 1, 1.0):
            raise TrainingError(
                f"{name} has {setting} = {getattr(config, setting)}, which the trainer does not compute; choose another model"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise TrainingError(f"{name}'s output layer is not a plain linear layer without bias ({head}); choose another model")
    if not model._supports_attention_backend:
        raise TrainingError(f"{name}'s attention cannot be replaced by the trainer's ({NO_TABLE}); choose another model")


def _layout_gap(model: PreTrainedModel) -> float:
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(0, model.config.get_text_config().vocab_size, length).tolist()  # noqa: E731
    prompts = [draw(5), draw(3)]
    completions = [draw(length) for length in (7, 4, 6, 2)]
    group = [0, 0, 1, 1]
    batch = make_batch([prompts[g] for g in group], completions, group=group)
    device = next(model.parameters()).device
    differences = []
    with torch.no_grad():
        (packed,) = pack(batch, int(batch.lengths.sum()))
        found = completion_logprobs(model, packed, 1.0, autocast=False)[0].cpu().numpy()
        with ordinary_attention(model):
            for b in range(len(batch)):
                start, end = int(batch.prompt_lengths[b]), int(batch.lengths[b])
                tokens = torch.from_numpy(batch.tokens[b, :end]).to(device)[None]
                plain = model(tokens, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
                expected = plain.gather(-1, tokens[0, start:, None]).squeeze(-1).cpu().numpy()
                differences.append(np.abs(found[packed.sample == b] - expected))
    return float(np.concatenate(differences).mean())
