"""Does a model compute on packed tokens what it computes on one sequence a row, and once written, what was trained?

The first is asked at start, before anything is learned; the second at the end, of the folder that others will load.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo.errors import TrainingError
from grpo.trainer.attention import NO_TABLE, ordinary_attention
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.loading import loaded
from grpo.trainer.logprobs import completion_logprobs
from grpo.trainer.packing import pack
from grpo.trainer.rope import rope_problem
from grpo.util.model_folder import names

Precision = Literal["float32", "bfloat16", "frozen in bfloat16"]
MAX_LAYOUT_GAP = 1e-3  # float32 rounding is a hundredth of it; a token that sees a sibling, or loses its prompt, moves by tenths
# Weights are compared to the last bit; this is for what else a folder says. Of tokens at random, which a model finds unlikely (-15 a token),
# SmolLM2's differed by 0.08 in bfloat16 after three updates; another rope base or multiplier moves them by more than one.
MAX_SAVED_GAP: dict[Precision, float] = {"float32": 0.25, "bfloat16": 0.5, "frozen in bfloat16": 0.5}
NOT_COMPUTED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def check_layout(model: PreTrainedModel, longest: int = 0) -> None:
    """Two prompts with two completions each, packed and plain, in float32.

    Raises TrainingError where the mean absolute difference of their log-probabilities exceeds MAX_LAYOUT_GAP, where the model computes
    something between hidden states and logits that the trainer doesn't know of, or where in sequences of up to ``longest`` tokens, which are
    too long to be tried, one changes what another is computed as.
    """
    check_head(model)
    name = type(model).__name__
    if problem := rope_problem(model.config, longest):
        raise TrainingError(f"{name}: {problem}")
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


def check_saved(
    folder: Path,
    trained: Iterable[tuple[str, Tensor]],
    batch: Batch,
    expected_BT: np.ndarray,
    precision: Precision,
    temperature: float,
) -> None:
    """Is the model that was written to ``folder`` the one that was trained? Loaded as anybody would load it, by plain transformers.

    ``trained`` are the trainer's weights by their names in memory, which rounded to the folder's types must be the folder's bit for bit;
    ``expected_BT`` are the trainer's log-probabilities of ``batch``, of which the model's own may differ by MAX_SAVED_GAP a token on average.
    Raises TrainingError naming what differs.
    """
    model = loaded(folder, dtype=torch.bfloat16).eval()
    held = model.state_dict()
    given = {name: weight.to("cpu", held[name].dtype).equal(held[name]) for name, weight in trained if name in held}
    if wrong := sorted(name for name in held if not given.get(name, False)):
        raise TrainingError(
            f"the model written to {folder} is not the one that was trained: it has another {names(wrong)}; train without lora on these layers"
        )
    is_rounded = precision != "float32"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_rounded):
        found = plain_logprobs(model if precision == "frozen in bfloat16" else model.float(), batch, temperature)
    gap = float(np.nanmean(np.abs(found - expected_BT)))
    if not gap <= MAX_SAVED_GAP[precision]:
        raise TrainingError(
            f"the model written to {folder} computes something else than what was trained: its log-probabilities differ by {gap:.4f} a token, "
            f"the bound is {MAX_SAVED_GAP[precision]}; report it with the model's config.json"
        )


def probe(model: PreTrainedModel) -> Batch:
    """Two prompts with two completions each, of tokens at random."""
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(0, model.config.get_text_config().vocab_size, length).tolist()  # noqa: E731
    prompts = [draw(5), draw(3)]
    completions = [draw(length) for length in (7, 4, 6, 2)]
    group = [0, 0, 1, 1]
    return make_batch([prompts[g] for g in group], completions, group=group)


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> np.ndarray:
    """Log-probability of each completion token, [B, T], NaN elsewhere: one sequence a row, logits everywhere, transformers' own attention."""
    logprobs_BT = np.full(batch.tokens.shape, np.nan)
    for b in range(len(batch)):
        start, end = int(batch.prompt_lengths[b]), int(batch.lengths[b])
        tokens = torch.from_numpy(batch.tokens[b, :end]).to(next(model.parameters()).device)[None]
        logits = model(tokens, use_cache=False).logits[0, start - 1 : -1]
        logprobs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        logprobs_BT[b, start:end] = logprobs.gather(-1, tokens[0, start:, None]).squeeze(-1).cpu().numpy()
    return logprobs_BT


def _layout_gap(model: PreTrainedModel) -> float:
    batch = probe(model)
    found_BT = np.full(batch.tokens.shape, np.nan)
    with torch.no_grad():
        (packed,) = pack(batch, int(batch.lengths.sum()))
        found_BT[packed.sample, packed.column] = completion_logprobs(model, packed, 1.0, autocast=False)[0].cpu().numpy()
    with ordinary_attention(model):
        expected_BT = plain_logprobs(model, batch)
    difference = np.abs(found_BT - expected_BT)[batch.loss_mask]
    return float(difference.mean())
