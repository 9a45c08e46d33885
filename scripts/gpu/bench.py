"""Speed and memory of one policy update at the shapes of a real model, and what each of several changes would gain.

    python scripts/gpu/bench.py qwen2.5-0.5b [--prompts 8] [--samples 8] [--prompt-tokens 256] [--completion-tokens 512]
                                             [--max-tokens 8192] [--variants] [--sleep]

Weights and tokens are random. Useful FLOP: 6 x parameters x tokens, a shared prompt counted once. ``mfu`` is the rate of useful FLOP divided
by the rate of bfloat16 matrix products that probe.py measures on the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import variants
from common import (
    DRY,
    GPU,
    RESERVED_TOKENS,
    SHAPES,
    attempt,
    grouped_batch,
    make_trainer,
    matmul_tflops,
    median_seconds,
    num_parameters,
    random_model,
    record,
    synchronize,
    timed,
)

from grpo.trainer.batch import Batch
from grpo.trainer.memory_budget import activation_bytes
from grpo.trainer.policy_trainer import PolicyTrainer
from rollout.weight_sync.weights import Transport, unpack_weights

GIB = 2**30
BASELINE = "toolkit"
KERNEL_KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "cublas", "sm90_", "sm80_"),
    "copies": ("memcpy", "copy", "memset"),
    "indexing": ("index", "gather", "scatter", "radixsort", "sort", "embedding"),
    "optimizer": ("adam", "multi_tensor", "norm_kernel"),
    "reductions": ("reduce",),
    "elementwise": ("elementwise", "vectorized", "triton"),
}


@dataclass(frozen=True)
class Bench:
    """A trainer and the batch that it is measured with."""

    model: str
    trainer: PolicyTrainer
    batch: Batch

    def micro_batch_tokens(self) -> list[int]:
        return [len(packed.tokens) for packed in self.trainer._passes(self.batch)]

    def update(self) -> None:
        self.trainer.policy_update(self.batch)


def random_batch(sizes: argparse.Namespace, vocabulary: int) -> Batch:
    """Completions are a third to four thirds as long as named."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> list[int]:
        return rng.integers(RESERVED_TOKENS, vocabulary, length).tolist()

    longest = sizes.completion_tokens
    prompts = [tokens(sizes.prompt_tokens) for _ in range(sizes.prompts)]
    completions = [[tokens(int(rng.integers(longest // 3, longest * 4 // 3))) for _ in range(sizes.samples)] for _ in prompts]
    return grouped_batch(prompts, completions, seed=0, max_tokens=longest)


# ----------------------------------------------------------------------------------------------------------------- measurements


def measure_update(bench: Bench, variant: str, rounds: int) -> None:
    """Seconds, rates and peak memory of an update, beside the activation memory that grpo.trainer.memory_budget estimates."""
    micro_batches, parameters = bench.micro_batch_tokens(), num_parameters(bench.trainer.model)
    tokens = sum(micro_batches)
    at_rest = torch.cuda.memory_allocated() if GPU else 0
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(bench.update, rounds)
    tflops = 6 * parameters * tokens / seconds / 1e12
    peak = torch.cuda.max_memory_allocated() if GPU else 0
    reserved = torch.cuda.memory_reserved() if GPU else 0
    checkpointed = bench.trainer.spec.optimizer.gradient_checkpointing
    estimated = activation_bytes(bench.trainer.model.config, checkpointed) * max(micro_batches)
    beside_activations = at_rest + (4 + 2) * parameters  # float32 gradients, and the weights rounded to bfloat16
    record(
        "update", model=bench.model, variant=variant, tokens=tokens, micro_batches=len(micro_batches), s=round(seconds, 4),
        tokens_per_s=round(tokens / seconds), tflops=round(tflops, 1), mfu=round(tflops / matmul_tflops(), 3), peak_gib=round(peak / GIB, 1),
        reserved_gib=round(reserved / GIB, 1), at_rest_gib=round(at_rest / GIB, 1),
        activations_gib=round((peak - beside_activations) / GIB, 1), activations_estimated_gib=round(estimated / GIB, 1),
    )  # fmt: skip


def profile_kernels(bench: Bench, variant: str) -> None:
    """Seconds by kind of kernel in one update, and the fraction of the time in which the GPU was busy."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU]) as profiler:
        wall = timed(bench.update)
    kernels = [(event.key, getattr(event, "self_device_time_total", 0) / 1e6, event.count) for event in profiler.key_averages()]
    by_kind: dict[str, float] = {}
    for key, seconds, _ in kernels:
        by_kind[kind_of(key)] = by_kind.get(kind_of(key), 0.0) + seconds
    longest = sorted(kernels, key=lambda kernel: -kernel[1])[:12]
    record(
        "kernels", model=bench.model, variant=variant, wall_s=round(wall, 3), gpu_busy_frac=round(sum(by_kind.values()) / wall, 3),
        launches=sum(count for *_, count in kernels),
        by_kind={kind: round(seconds, 4) for kind, seconds in sorted(by_kind.items(), key=lambda item: -item[1])},
        longest=[[key[:90], round(seconds, 4), count] for key, seconds, count in longest],
    )  # fmt: skip


def kind_of(kernel: str) -> str:
    return next((kind for kind, words in KERNEL_KINDS.items() if any(word in kernel.lower() for word in words)), "other")


def count_synchronizations(bench: Bench) -> None:
    """How often the CPU waits for the GPU in one update, and on which lines."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bench.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines: dict[str, int] = {}
    for warning in caught:
        if "synchroniz" in str(warning.message):
            line = f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}"
            lines[line] = lines.get(line, 0) + 1
    most = dict(sorted(lines.items(), key=lambda item: -item[1])[:12])
    record("synchronizations", model=bench.model, micro_batches=len(bench.micro_batch_tokens()), num=sum(lines.values()), lines=most)


def measure_sleep(bench: Bench) -> None:
    """Seconds to hand the GPU to an engine and to take it back. The second round reuses the host memory of the first."""
    for round_ in range(2):
        held = torch.cuda.memory_allocated() if GPU else 0
        sleep_s = timed(bench.trainer.sleep)
        left = torch.cuda.memory_allocated() if GPU else 0
        wake_s = timed(bench.trainer.wake)
        record(
            "trainer_sleep", model=bench.model, round=round_, moved_gib=round((held - left) / GIB, 2), left_mib=round(left / 2**20),
            sleep_s=round(sleep_s, 2), wake_s=round(wake_s, 2), sleep_gb_s=round((held - left) / sleep_s / 1e9, 2),
        )  # fmt: skip


def measure_export(bench: Bench) -> None:
    """Seconds to pack all weights for a weight sync, and to unpack them on the engine's side."""
    transports: tuple[Transport, ...] = ("host", "cuda_ipc") if GPU else ("host",)
    for transport in transports:
        started = time.perf_counter()
        update = bench.trainer.export_weights(1, "bfloat16", transport)
        synchronize()
        exported = time.perf_counter()
        assert update is not None, "a trainer of one rank is the first rank"
        unpack_weights(update)
        synchronize()
        unpacked = time.perf_counter()
        record(
            "export",
            model=bench.model,
            transport=transport,
            export_s=round(exported - started, 2),
            unpack_s=round(unpacked - exported, 2),
        )


# --------------------------------------------------------------------------------------------------------------------- variants


def changes_to_try(model: Any) -> dict[str, tuple[Callable[[], AbstractContextManager[None]], ...]]:
    max_logits = 2**12 if DRY else 2**30
    large, fused = partial(variants.large_head, max_logits), partial(variants.fused_head, max_logits)
    stream, layers = partial(variants.bf16_stream, model), partial(variants.compiled_layers, model)
    return {
        "large head": (large,),
        "varlen": (variants.varlen,),
        "fused head": (fused,),
        "fused head, varlen": (fused, variants.varlen),
        "fused head, varlen, bf16 stream": (fused, variants.varlen, stream),
        "fused head, varlen, trainer.compile": (fused, variants.varlen, partial(variants.compiled_pointwise, model)),
        "fused head, varlen, compiled layers": (fused, variants.varlen, layers),
        "fused head, varlen, bf16 stream, compiled layers": (fused, variants.varlen, stream, layers),
    }


def try_variants(bench: Bench, reference_BT: np.ndarray) -> None:
    """Measure every change, after recording how far its log-probs are from ``reference_BT``, the unchanged trainer's."""
    tried = changes_to_try(bench.trainer.model)
    if DRY:
        del tried["fused head, varlen, compiled layers"]  # the last variant compiles the same layers, which takes longest
    for label, changes in tried.items():
        attempt(label, partial(try_variant, bench, label, changes, reference_BT))


def try_variant(
    bench: Bench, label: str, changes: tuple[Callable[[], AbstractContextManager[None]], ...], reference_BT: np.ndarray
) -> None:
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(change())
        difference = np.nanmean(np.abs(bench.trainer.logprobs(bench.batch) - reference_BT))
        record("variant_agrees", model=bench.model, variant=label, logprobs_mean=difference)
        measure_update(bench, label, rounds=2)
        if "compiled layers" in label:
            profile_kernels(bench, label)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--completion-tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=8192, help="per micro-batch")
    parser.add_argument("--variants", action="store_true", help="measure the changes in variants.py too")
    parser.add_argument("--sleep", action="store_true", help="measure sleep, wake and weight export too")
    arguments = parser.parse_args()
    if DRY:
        tiny = dict(model="tiny", prompts=2, samples=3, prompt_tokens=8, completion_tokens=24, max_tokens=96)
        vars(arguments).update(tiny)
    return arguments


def main() -> int:
    arguments = parse_arguments()
    started = time.perf_counter()
    # At such a small learning rate no weight moves, so variants can be compared with log-probs from before any update.
    trainer = make_trainer(random_model(arguments.model), learning_rate=1e-12, max_tokens=arguments.max_tokens)
    bench = Bench(arguments.model, trainer, random_batch(arguments, trainer.model.config.vocab_size))
    seconds = round(time.perf_counter() - started, 1)
    record("ready", **vars(arguments), s=seconds, parameters=num_parameters(trainer.model))
    attempt("update", lambda: measure_update(bench, BASELINE, rounds=3))
    attempt("kernels", lambda: profile_kernels(bench, BASELINE))
    if GPU:
        attempt("synchronizations", lambda: count_synchronizations(bench))
    if arguments.variants:
        reference_BT = attempt("reference", lambda: trainer.logprobs(bench.batch))
        if reference_BT is not None:
            try_variants(bench, reference_BT)
    if arguments.sleep:
        attempt("trainer_sleep", lambda: measure_sleep(bench))
        attempt("export", lambda: measure_export(bench))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
