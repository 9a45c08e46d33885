"""A tiny base model made on the spot: a tokenizer, a noisy corpus, and a minute of pre-training.

Pre-training goes through two kinds of text. The textbook works sums out, in think tags and as bare arithmetic; it teaches the steps. The web,
which comes last, mostly answers at once and often wrongly, or without tags. The model that comes out can reason but rarely does, and that
reasoning pays is what reinforcement learning is to find out.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config import MadeModel, OptimizerKeys, Tags
from grpo.data.general import general_rows
from grpo.data.sums import steps_of, worked_sum

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
VOCABULARY = 512
TEXTBOOK = {"worked": 0.75, "arithmetic": 0.25}
WEB = {"worked": 0.15, "guess": 0.5, "untagged": 0.35}
WEB_FRAC = 0.15  # of the updates, at the end
DOCUMENTS_PER_UPDATE = 48
FORMAT_VERSION = 4  # part of the cache key: raise it when the making changes


def tiny_folder(made: MadeModel, rows: Sequence[dict[str, Any]], tags: Tags, render: Callable[[str], str]) -> Path:
    """Where the model of these settings, problems, tags and template lives in the cache, whether or not it has been made."""
    import xxhash

    corpus_from = [(render(row["prompt"]), row["expression"]) for row in rows]
    identity = json.dumps([FORMAT_VERSION, made.model_dump(), tags.model_dump(), corpus_from], sort_keys=True)
    cache = Path(os.environ.get("GRPO_CACHE") or Path.home() / ".cache" / "grpo-toolkit")
    return cache / f"{made.make}-{xxhash.xxh3_64_hexdigest(identity.encode())}"


def make_tiny(
    made: MadeModel, rows: Sequence[dict[str, Any]], tags: Tags, render: Callable[[str], str], progress: Callable[[int, int, float], None]
) -> Path:
    """Make the model, or find it in the cache, and return its Hugging Face folder.

    rows       problems with columns prompt and expression ("3 + 4 - 5"), from which the corpus is written
    render     question -> prompt text: the recipe's template
    progress   called with (update, updates, loss)
    """
    from filelock import FileLock

    folder = tiny_folder(made, rows, tags, render)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").exists():
            building = folder.with_name(folder.name + ".building")
            shutil.rmtree(building, ignore_errors=True)
            _build(made, rows, tags, render, progress, building)
            building.rename(folder)
    return folder


def corpus(
    made: MadeModel, shares: Mapping[str, float], rows: Sequence[dict[str, Any]], tags: Tags, render: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Endless (prompt, continuation) documents of these kinds; arithmetic ones have an empty prompt. The same for the same settings."""
    rng = random.Random(f"corpus-{made.pretrain_seed}-{sorted(shares)}")
    kinds, weights = list(shares), list(shares.values())
    while True:
        row = rng.choice(rows)
        kind = rng.choices(kinds, weights)[0]
        if kind == "arithmetic":
            yield "", _facts(rng)
        else:
            yield render(row["prompt"]), _answered(kind, row["expression"], tags, rng)


def _answered(kind: str, expression: str, tags: Tags, rng: random.Random) -> str:
    _, total = steps_of(expression)
    guess = total if rng.random() < 0.5 else total + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    match kind:
        case "worked":
            return worked_sum(expression, tags)
        case "guess":
            return f" <{tags.answer}> {guess} </{tags.answer}>"
        case "untagged":
            return rng.choice((f" The answer is {guess}", f" {guess}", f" I think it is {guess}"))
    raise ValueError(f"corpus: unknown kind of document {kind!r}")


def _facts(rng: random.Random, num_facts: int = 10) -> str:
    """Single steps, as they come up in sums of four terms: most of what a worked solution can get wrong."""
    facts = []
    for _ in range(num_facts):
        terms = [str(rng.randint(0, 9))] + [f"{rng.choice('+-')} {rng.randint(0, 9)}" for _ in range(3)]
        facts.append(rng.choice(steps_of(" ".join(terms))[0]))
    return ", ".join(facts)


def make_tokenizer(texts: Sequence[str], phrases: Sequence[str], tags: Tags) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen2's word boundaries and single digits; tags, end, padding and ``phrases`` are tokens of their own.

    The phrases are the fixed parts of the template: one token each instead of a hundred for every prompt. Tags and phrases are ordinary text,
    so they show when decoded. (transformers gives every Qwen2 model Qwen2's word boundaries on loading, whatever was saved.)
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    whole = [f"<{slash}{name}>" for name in (tags.think, tags.answer) for slash in ("", "/")] + list(phrases)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, min_frequency=20, initial_alphabet=alphabet, show_progress=False)
    between = re.compile("|".join(map(re.escape, whole)))
    tokenizer.train_from_iterator((piece for text in texts for piece in between.split(text)), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])
    tokenizer.add_special_tokens([END, PAD])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, unk_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def template_phrases(template_text: str, question: str) -> list[str]:
    """The fixed parts of a rendered template: what stands before and after the question."""
    return [part for part in template_text.split(question) if len(part) > 1]


def _build(
    made: MadeModel,
    rows: Sequence[dict[str, Any]],
    tags: Tags,
    render: Callable[[str], str],
    progress: Callable[[int, int, float], None],
    folder: Path,
) -> None:
    from itertools import islice

    from grpo.trainer.batch import make_batch
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec

    textbook = corpus(made, TEXTBOOK, rows, tags, render)
    web = corpus(made, WEB | {str(kind): share for kind, share in made.corpus.items()}, rows, tags, render)
    sample = [
        *islice(textbook, 2000),
        *islice(web, 2000),
        *((row["prompt"], row["completion"]) for row in general_rows(400, made.pretrain_seed, tags)),
    ]
    marker = "QUESTION"
    tokenizer = make_tokenizer([piece for document in sample for piece in document], template_phrases(render(marker), marker), tags)
    _initial_model(made, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    optimizer = OptimizerKeys(
        learning_rate=made.pretrain_learning_rate,
        warmup_updates=30,
        lr_schedule="cosine",
        weight_decay=0.1,
        max_tokens_per_micro_batch=8192,
    )
    # The curve ends at 0 on the last update, which a stage's no longer does: so the models that published numbers start from stay the same.
    trainer = PolicyTrainer(TrainerSpec(folder, optimizer, made.pretrain_updates - 1))
    web_begins = round(made.pretrain_updates * (1 - WEB_FRAC))
    for update in range(made.pretrain_updates):
        pairs = list(islice(textbook if update < web_begins else web, DOCUMENTS_PER_UPDATE))
        heads = tokenizer([prompt or END for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
        tails = tokenizer([text + END for _, text in pairs], add_special_tokens=False)["input_ids"]
        batch = make_batch(heads, tails).with_weights("token_mean", max_tokens=1)
        progress(update + 1, made.pretrain_updates, trainer.supervised_update(batch)["loss/total"])
    trainer.save(folder)


def shapes_of(made: MadeModel, vocabulary: int) -> dict[str, Any]:
    """What the made model's config.json says of its shapes."""
    return dict(
        model_type=made.make.removeprefix("tiny_"),
        vocab_size=vocabulary,
        hidden_size=made.hidden_size,
        intermediate_size=2 * made.hidden_size,
        num_hidden_layers=made.layers,
        num_attention_heads=made.heads,
        num_key_value_heads=made.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def _initial_model(made: MadeModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(made.seed)
    sizes = shapes_of(made, len(tokenizer))
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    if sizes.pop("model_type") == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, **ends))
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **ends))
