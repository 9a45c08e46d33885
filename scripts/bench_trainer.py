"""How fast and how lean is one update? Against the naive way and against the machine's own matrix products.

    python scripts/bench_trainer.py [--model smollm2] [--shapes 48/36 128/128] [--prompts 8] [--samples 8] [--rounds 3] [--json]
    python scripts/bench_trainer.py --memory 8x16x512 [--max-tokens-per-micro-batch 2048]

Random weights of the named shapes; random tokens, completions a third shorter to a third longer than named; advantages of every size, so that no
sample is skipped. Ours, the naive way and a bfloat16 matrix product alternate in one process; medians are compared. The naive way is one padded row
a sequence with logits everywhere, [B, T, V] in float32, and transformers' own attention.

Useful FLOP/s: 6 x parameters x tokens / seconds, a shared prompt counted once, for both ways. Peak memory is of a process that makes one update.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

MODELS = {
    "tiny": ("Llama", dict(hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=2, vocab_size=400)),
    "smollm2": (
        "Llama",
        dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152),
    ),
    "qwen2.5-0.5b": (
        "Qwen2",
        dict(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151936
        ),
    ),
    "qwen2.5-1.5b": (
        "Qwen2",
        dict(
            hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936
        ),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--shapes", nargs="+", default=["48/36", "128/128"], help="prompt/completion tokens")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens-per-micro-batch", type=int, default=4096)
    parser.add_argument("--memory", metavar="PxGxL", help="measure peak memory of P prompts x G samples x L tokens instead")
    parser.add_argument("--only", choices=["ours", "naive"], help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if arguments.only:
        return make_one_update(arguments)
    result = compare_memory(arguments) if arguments.memory else compare_speed(arguments)
    if arguments.json:
        print(json.dumps(result))
    return 0


def compare_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    shapes = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), arguments)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        for shape in arguments.shapes:
            prompt, completion = map(int, shape.split("/"))
            batch = make_batch_of(arguments.prompts, arguments.samples, prompt, completion, trainer.model.config.vocab_size)
            ways = {"ours": lambda b=batch: trainer.policy_update(b), "naive": lambda b=batch: naive_update(trainer, b)}
            seconds, rate = alternate(ways, arguments.rounds, trainer.device)
            tokens = sum(len(packed.tokens) for packed in trainer._passes(batch))
            useful = {name: 6 * parameters * tokens / value for name, value in seconds.items()}
            shapes[shape] = {
                "ours_s": seconds["ours"],
                "naive_s": seconds["naive"],
                "ratio": seconds["naive"] / seconds["ours"],
                "tokens": tokens,
                "tokens_per_s": tokens / seconds["ours"],
                "useful_gflops": useful["ours"] / 1e9,
                "matmul_gflops": rate / 1e9,
                "utilisation": useful["ours"] / rate,
            }
            print(
                f"{arguments.model} {shape}, {arguments.prompts} x {arguments.samples}: update {seconds['ours']:.2f} s, naive "
                f"{seconds['naive']:.2f} s ({shapes[shape]['ratio']:.1f} times as fast); {tokens / seconds['ours']:.0f} tokens/s, "
                f"{useful['ours'] / 1e9:.0f} GFLOP/s of {rate / 1e9:.0f} in matrix products ({useful['ours'] / rate:.0%})",
                flush=True,
            )
    ratio = statistics.geometric_mean([shape["ratio"] for shape in shapes.values()])
    return {"model": arguments.model, "shapes": shapes, "ratio": ratio, "rounds": arguments.rounds}


def alternate(ways: dict[str, Callable[[], Any]], rounds: int, device: Any) -> tuple[dict[str, float], float]:
    """Median seconds of each way, and the median rate of matrix products made between them, in FLOP/s. The first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    rates = []
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            seconds = timed(way, device)
            rate = matmul_rate(device)
            if round_:
                taken[name].append(seconds)
                rates.append(rate)
    return {name: statistics.median(values) for name, values in taken.items()}, statistics.median(rates)


def timed(way: Callable[[], Any], device: Any) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matmul_rate(device: Any) -> float:
    import torch

    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    a @ b
    seconds = timed(lambda: [a @ b for _ in range(4)], device)
    return 4 * 2 * size**3 / seconds


def naive_update(trainer: Any, batch: Any) -> None:
    """The same loss on one padded row a sequence, logits everywhere; forward, backward and the optimizer's step."""
    import torch

    from grpo.algorithm.losses import clipped_surrogate
    from grpo.trainer.attention import ordinary_attention

    device = trainer.device
    tokens = torch.from_numpy(batch.tokens).to(device)
    mask = torch.arange(tokens.shape[1], device=device)[None] < torch.from_numpy(batch.lengths).to(device)[:, None]
    with ordinary_attention(trainer.model):
        for rows in torch.arange(len(batch), device=device).split(
            max(1, trainer.spec.optimizer.max_tokens_per_micro_batch // tokens.shape[1])
        ):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = trainer.model(tokens[rows], attention_mask=mask[rows].long(), use_cache=False).logits
            logprobs = (logits.float() / trainer.spec.temperature).log_softmax(-1)
            taken = logprobs[:, :-1].gather(-1, tokens[rows, 1:, None]).squeeze(-1)
            advantages = torch.from_numpy(batch.advantages).to(device)[rows, None].float()
            weights = torch.from_numpy(batch.weights).to(device)[rows, 1:].float()
            (clipped_surrogate(taken - taken.detach(), advantages, 0.2, 0.2) * weights).sum().backward()
    trainer._step()


def compare_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of a process that makes one update, in GiB, less what the same process holds before it."""
    found: dict[str, Any] = {}
    for way in ("ours", "naive"):
        command = [sys.executable, __file__, "--only", way, "--memory", arguments.memory, "--model", arguments.model]
        # The naive way holds the logits of the whole batch: that is what makes it naive.
        budget = str(arguments.max_tokens_per_micro_batch) if way == "ours" else str(10**9)
        process = subprocess.run([*command, "--max-tokens-per-micro-batch", budget], capture_output=True, text=True, check=False)
        found[way] = json.loads(process.stdout.splitlines()[-1]) if process.returncode == 0 else None
    prompts, samples, length = map(int, arguments.memory.split("x"))
    logits = prompts * samples * length * MODELS[arguments.model][1]["vocab_size"] * 4 / 2**30
    for way, memory in found.items():
        what = f"{memory['peak_gib']:.1f} GiB" if memory else "did not fit into this machine's memory"
        print(f"{arguments.model} {arguments.memory}, {way}: {what}")
    print(f"one [B, T, V] of float32 logits alone: {logits:.1f} GiB")
    at_least = found["naive"]["peak_gib"] if found["naive"] else 2 * logits
    ratio = found["ours"]["peak_gib"] / at_least if found["ours"] else None
    return {
        "model": arguments.model,
        "shape": arguments.memory,
        **found,
        "logits_gib": logits,
        "naive_at_least_gib": at_least,
        "ratio": ratio,
    }


def make_one_update(arguments: argparse.Namespace) -> int:
    prompts, samples, length = map(int, arguments.memory.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), arguments)
        batch = make_batch_of(prompts, samples, 32, length, trainer.model.config.vocab_size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if arguments.only == "ours":
            trainer.policy_update(batch)
        else:
            naive_update(trainer, batch)
    print(json.dumps({"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "before_gib": before / 2**20}))
    return 0


def make_trainer(folder: Path, arguments: argparse.Namespace):
    import transformers

    from grpo.algorithm import GRPO
    from grpo.config import OptimizerKeys
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec

    family, sizes = MODELS[arguments.model]
    config = getattr(transformers, f"{family}Config")(tie_word_embeddings=True, **sizes)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    optimizer = OptimizerKeys(learning_rate=1e-6, max_tokens_per_micro_batch=arguments.max_tokens_per_micro_batch)
    return PolicyTrainer(TrainerSpec(folder, optimizer, total_updates=1000, algorithm=replace(GRPO, kl_coef=0.0)))


def make_batch_of(prompts: int, samples: int, prompt: int, completion: int, vocabulary: int):
    from grpo.trainer.batch import make_batch

    rng = np.random.default_rng(0)
    asked = [rng.integers(0, vocabulary, prompt).tolist() for _ in range(prompts)]
    group = [i for i in range(prompts) for _ in range(samples)]
    low, high = max(1, completion * 2 // 3), completion * 4 // 3 + 1
    completions = [rng.integers(0, vocabulary, rng.integers(low, high)).tolist() for _ in group]
    batch = make_batch([asked[i] for i in group], completions, group=group, advantages=rng.normal(size=len(group)))
    return batch.with_weights("sequence_mean", max_tokens=completion)


if __name__ == "__main__":
    raise SystemExit(main())
