"""What does a reward model, a transformer with a head for sequence classification, give a completion?

The process that this reward has to itself loads the model, once, when it starts. transformers is imported there and nowhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rewards.errors import RewardError
from rewards.function import Noted, reward
from rewards.models.conversation import plain_text, with_answer
from rewards.paths import ModelPath
from rewards.rules.extract import final_text

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def check(model: str, batch_size: int, max_tokens: int, label: int | None, **_: Any) -> str | None:
    """What is wrong with the settings, and with a folder as far as its config.json tells. A hub id is looked at when it is loaded."""
    if not model:
        return "it needs the setting model: a folder, or a hub id"
    if batch_size < 1 or max_tokens < 1:
        return f"batch_size ({batch_size}) and max_tokens ({max_tokens}) must be at least 1"
    if not Path(model).is_absolute():
        return None
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"model {model}: there is no config.json that can be read; name the folder of a model"
    kinds = config.get("architectures") or ["unknown"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return f"model {model} is a {kinds[0]}; a reward model is a ...ForSequenceClassification, whose head gives the score"
    num_labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    return _wrong_label(model, num_labels, label)


def _wrong_label(model: str, num_labels: int, label: int | None) -> str | None:
    if label is None and num_labels != 1:
        return f"model {model} gives {num_labels} scores; write label: the number, from 0, of the one that counts"
    if label is not None and not 0 <= label < num_labels:
        return f"label {label}: model {model} gives {num_labels} scores, numbered from 0"
    return None


@cache
def load(model: str, device: str, dtype: Dtype, label: int | None) -> tuple[Any, Any]:
    """The model, without gradients, and its tokenizer. A head that the folder does not hold would be random: RewardError."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network, report = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype, output_loading_info=True, use_safetensors=True)
    if report["missing_keys"]:
        raise RewardError(f"model {model} is no reward model: it holds no {', '.join(sorted(report['missing_keys'])[:3])}")
    if problem := _wrong_label(model, network.config.num_labels, label):
        raise RewardError(problem)
    return network.requires_grad_(False).eval().to(device), AutoTokenizer.from_pretrained(model)


@reward(check=check, prepare=load, prepare_s=1800.0, alone=True, by_model=True)
def reward_model(
    completions: Sequence[Any],
    prompts: Sequence[Any],
    *,
    model: ModelPath = "",
    sees: Literal["answer", "everything"] = "answer",
    template: Literal["chat", "plain"] = "chat",
    label: int | None = None,
    batch_size: int = 8,
    max_tokens: int = 4096,
    device: str = "cpu",
    dtype: Dtype = "auto",
    think_tag: str = "think",
) -> list[Noted]:
    """The model's raw score (a logit, any number): R1's preference reward for general data (arXiv:2501.12948, section 2.3.4).

    sees        answer: what follows the thinking, as R1 judges helpfulness; or everything, as it judges harmlessness
    template    chat: the model's own chat template around prompt and completion; plain: both, with a line break between
    label       which score counts, for a head with several
    batch_size  samples in one forward pass; one, where the tokenizer has no padding token
    max_tokens  longer texts are None, not cut: a cut text is another one
    device      cpu, cuda, cuda:1, ...; Ray does not know of what it takes there

    A completion without a final answer is judged as an empty one. A score that is not finite is None.
    """
    network, tokenizer = load(model, device, dtype, label)
    texts = [_shown(turn, sees == "everything", think_tag) for turn in completions]
    rows = [_ids(tokenizer, prompt, text, template) for prompt, text in zip(prompts, texts, strict=True)]
    results = [Noted(None, f"{len(row)} tokens are more than max_tokens, {max_tokens}") for row in rows]
    fitting = sorted((index for index, row in enumerate(rows) if len(row) <= max_tokens), key=lambda index: len(rows[index]))
    size = batch_size if tokenizer.pad_token is not None else 1
    for start in range(0, len(fitting), size):
        chosen = fitting[start : start + size]
        for index, score in zip(chosen, _scores(network, tokenizer, [rows[index] for index in chosen], label or 0), strict=True):
            results[index] = Noted(score, "") if math.isfinite(score) else Noted(None, f"the model's score is {score}")
    return results


def _shown(turn: Any, everything: bool, think_tag: str) -> str:
    text = plain_text(turn)
    return text if everything else final_text(text, tag=think_tag) or ""


def _ids(tokenizer: Any, prompt: Any, text: str, template: str) -> list[int]:
    if template == "plain":
        return tokenizer(f"{plain_text(prompt)}\n{text}")["input_ids"]
    if tokenizer.chat_template is None:
        raise RewardError("the reward model's tokenizer has no chat template; write template: plain")
    chat = tokenizer.apply_chat_template(with_answer(prompt, text), tokenize=False)
    return tokenizer(chat, add_special_tokens=False)["input_ids"]


def _scores(network: Any, tokenizer: Any, rows: Sequence[Sequence[int]], label: int) -> list[float]:
    if len(rows) > 1 and network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id  # by which it finds where a row ends
    batch = tokenizer.pad({"input_ids": list(rows)}, return_tensors="pt").to(network.device)
    return network(**batch).logits[:, label].float().tolist()
