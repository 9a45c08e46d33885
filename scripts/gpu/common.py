"""Shared parts of the GPU checks: where results go, models with random weights, trainers, timing.

The environment sets three things: OUT, the folder for results (default: the current one); WORK, a folder for temporary files; and DRY, which
makes everything tiny, so that a machine without a GPU can run every line.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

from grpo.algorithm import GRPO
from grpo.config import Lora, OptimizerKeys, Tags, Trainer
from grpo.resources.tiny_models import make_tokenizer
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from rollout.types import SamplingParams

OUT = Path(os.environ.get("OUT", "."))
WORK = Path(os.environ.get("WORK", "/tmp/gpu-work"))
DRY = bool(os.environ.get("DRY"))
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
RESERVED_TOKENS = 2  # of every vocabulary, the end token and padding among them: random token ids start here

SHAPES: dict[str, dict[str, int]] = {
    "tiny": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=512),
    "qwen2.5-0.5b": dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151936
    ),
    "qwen2.5-1.5b": dict(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936
    ),
}
Result = TypeVar("Result")

transformers.utils.logging.disable_progress_bar()
if DRY:
    torch.set_num_threads(1)  # tiny tensors are computed faster by one thread than by several that wait for each other


def record(check: str, **facts: Any) -> None:
    """Append one measurement to numbers.jsonl, and print it."""
    line = json.dumps({"check": check, **facts}, default=float)
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "numbers.jsonl").open("a") as file:
        file.write(line + "\n")
    print("> " + line, flush=True)


def attempt(check: str, work: Callable[[], Result]) -> Result | None:
    """The result of ``work``. A failure is recorded and gives None, so that the checks after it still run."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        record(check, error=f"{type(error).__name__}: {str(error).strip()[:500]}")
        return None


# ----------------------------------------------------------------------------------------------------------------------- models


def random_model(name: str, max_tokens: int = 32768) -> Path:
    """A Hugging Face folder of a Qwen2 of the named shapes with random bfloat16 weights. It is made once and then reused."""
    folder = _model_root() / f"gpu-check-{name}"
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    tokens = dict(bos_token_id=None, eos_token_id=1, pad_token_id=1)
    config = transformers.Qwen2Config(tie_word_embeddings=True, max_position_embeddings=max_tokens, **tokens, **SHAPES[name])
    with DEVICE:
        model = transformers.Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    building = folder.with_name(folder.name + ".building")
    model.cpu().save_pretrained(building)
    make_tokenizer(["Calculate 3 + 4."], [], Tags()).save_pretrained(building)
    building.rename(folder)
    del model
    if GPU:
        torch.cuda.empty_cache()
    return folder


def _model_root() -> Path:
    """Main memory where it has room, because a model is read by several processes."""
    shared = Path("/dev/shm")
    has_room = not DRY and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 8 * 2**30
    root = shared if has_room else WORK
    root.mkdir(parents=True, exist_ok=True)
    return root


def vocabulary_of(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def make_trainer(
    folder: Path,
    *,
    learning_rate: float = 1e-3,
    max_tokens: int | None = None,
    kl_coef: float = 0.0,
    temperature: float = 1.0,
    precision: str = "bfloat16",
    checkpointing: bool = False,
    lora_rank: int | None = None,
) -> PolicyTrainer:
    """A GRPO trainer. ``max_tokens`` is the number of tokens in a micro-batch."""
    optimizer = OptimizerKeys(
        learning_rate=learning_rate,
        max_tokens_per_micro_batch=max_tokens,
        gradient_checkpointing=checkpointing,
        lora=Lora(rank=lora_rank) if lora_rank else None,
    )
    layout = Trainer(precision=precision)  # type: ignore[arg-type]
    sampling = SamplingParams(max_tokens=1, temperature=temperature)
    return PolicyTrainer(TrainerSpec(folder, optimizer, 1000, replace(GRPO, kl_coef=kl_coef), sampling, layout=layout))


def grouped_batch(prompts: Sequence[list[int]], completions: Sequence[Sequence[list[int]]], seed: int, max_tokens: int) -> Batch:
    """One optimizer batch; completions[i] are the samples of prompts[i]. Advantages and the engine's log-probs are random."""
    rng = np.random.default_rng(seed)
    group = [i for i, samples in enumerate(completions) for _ in samples]
    flat = [completion for samples in completions for completion in samples]
    sampled = [(-3 * rng.random(len(completion))).tolist() for completion in flat]
    advantages = rng.normal(size=len(flat)).tolist()
    batch = make_batch([prompts[i] for i in group], flat, group=group, sampled_logprobs=sampled, advantages=advantages)
    return batch.with_weights("sequence_mean", max_tokens=max_tokens)


# ----------------------------------------------------------------------------------------------------------------------- timing


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds until the device has finished ``work``."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The median of ``rounds`` calls, after one that warms up."""
    work()
    return statistics.median(timed(work) for _ in range(rounds))


def matmul_tflops() -> float:
    """The machine's own rate of bfloat16 matrix products, which is what MFU is measured against. probe.py measures it once."""
    file = WORK / "rates.json"
    if not file.exists():
        import probe

        probe.measure_rates()
    return json.loads(file.read_text())["matmul_tflops"]
