"""vLLM on this GPU as the toolkit drives it: speed, weight sync, sleep, agreement with the trainer; and what faster settings would gain.

    python scripts/gpu/engine.py qwen2.5-0.5b [--sequences 256] [--prompt-tokens 128] [--completion-tokens 256] [--sleep]
    python scripts/gpu/engine.py qwen2.5-0.5b --faster

--faster generates the same tokens by vLLM alone: with the toolkit's settings first, then with one of them changed at a time.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DRY, GPU, RESERVED_TOKENS, SHAPES, attempt, make_trainer, random_model, record, timed, vocabulary_of

from grpo.trainer.batch import make_batch
from rollout.engines.base import EngineSettings, RolloutEngine, generate
from rollout.engines.vllm import VllmEngine
from rollout.types import Request, SamplingParams
from rollout.weight_sync.proof import perturb, read_safetensors
from rollout.weight_sync.weights import Transport, pack_weights

GIB = 2**30
DEADLINE_S = 200.0
SAMPLES_PER_PROMPT = 8
COMPARED = 24  # completions whose log-probs the trainer computes again


@dataclass(frozen=True)
class Work:
    """What is generated in every measurement."""

    model: str
    folder: Path
    sequences: int
    prompt_tokens: int
    completion_tokens: int

    def requests(self, name: str) -> list[Request]:
        """The same prompts and seeds every time, under ids that begin with ``name``."""
        rng = np.random.default_rng(0)
        vocabulary, num_prompts = vocabulary_of(self.folder), max(1, self.sequences // SAMPLES_PER_PROMPT)
        prompts = [tuple(rng.integers(RESERVED_TOKENS, vocabulary, self.prompt_tokens).tolist()) for _ in range(num_prompts)]
        sampling = SamplingParams(max_tokens=self.completion_tokens)
        return [Request(f"{name}-{i}", prompts[i % num_prompts], sampling, seed=i * 7919) for i in range(self.sequences)]


def free_gib() -> float:
    return round(torch.cuda.mem_get_info()[0] / GIB, 2) if GPU else 0.0


# --------------------------------------------------------------------------------------------------------- the toolkit's engine


def check_engine(work: Work, settings: EngineSettings) -> None:
    engine = VllmEngine(settings)
    load_s = timed(lambda: engine.load_model(work.folder, 0))
    record("engine_ready", model=work.model, s=round(load_s, 1), free_gib=free_gib())
    attempt("generate", lambda: measure_generation(work, engine))
    attempt("engine_agrees_with_trainer", lambda: compare_with_trainer(work, engine))
    attempt("weight_sync", lambda: measure_weight_sync(work, engine))
    if settings.sleeps and GPU:
        attempt("engine_sleep", lambda: measure_sleep(work, engine))
    engine.close()
    if GPU:
        torch.cuda.empty_cache()
    record("engine_closed", model=work.model, free_gib=free_gib())


def measure_generation(work: Work, engine: RolloutEngine) -> None:
    for round_ in range(2):
        started = time.perf_counter()
        completions = generate(engine, work.requests(f"round{round_}"), DEADLINE_S)
        seconds = time.perf_counter() - started
        record_generation(work, "toolkit", round_, seconds, sum(completion.num_tokens for completion in completions))


def record_generation(work: Work, settings: str, round_: int, seconds: float, tokens: int) -> None:
    record(
        "generate", model=work.model, settings=settings, sequences=work.sequences, round=round_, s=round(seconds, 2), tokens=tokens,
        tokens_per_s=round(tokens / seconds),
    )  # fmt: skip


def compare_with_trainer(work: Work, engine: RolloutEngine) -> None:
    """The difference, token by token, between the engine's log-probs and the trainer's, for completions of the engine."""
    requests = work.requests("compare")[:COMPARED]
    completions = generate(engine, requests, DEADLINE_S)
    trainer = make_trainer(work.folder, max_tokens=8192)
    sampled = [completion.logprobs for completion in completions]
    batch = make_batch([request.tokens for request in requests], [c.tokens for c in completions], sampled_logprobs=sampled)
    difference = np.abs(trainer.logprobs(batch) - batch.sampled_logprobs)[batch.loss_mask]
    record(
        "engine_agrees_with_trainer",
        model=work.model,
        tokens=len(difference),
        mean=np.nanmean(difference),
        max=np.nanmax(difference),
    )


def measure_weight_sync(work: Work, engine: RolloutEngine) -> None:
    """Seconds to replace all weights in place by others, which includes the proof that the engine computes with them."""
    changed = perturb(read_safetensors(work.folder), seed=3)
    transports: tuple[Transport, ...] = ("host", "cuda_ipc") if GPU else ("host",)
    for transport in transports:
        tensors = changed if transport == "host" else {name: tensor.cuda() for name, tensor in changed.items()}
        update = pack_weights(tensors.items(), 1, torch.bfloat16, transport)
        for round_ in range(2):
            seconds = timed(lambda update=update: engine.load_weights(update))  # type: ignore[misc]
            record("weight_sync", model=work.model, transport=transport, round=round_, s=round(seconds, 2))


def measure_sleep(work: Work, engine: RolloutEngine) -> None:
    for round_ in range(2):
        before = free_gib()
        sleep_s = timed(engine.sleep)
        given_back = free_gib() - before
        wake_s = timed(engine.wake)
        record(
            "engine_sleep",
            model=work.model,
            round=round_,
            sleep_s=round(sleep_s, 2),
            wake_s=round(wake_s, 2),
            given_back_gib=round(given_back, 1),
        )


# -------------------------------------------------------------------------------------------------------------- faster settings


@dataclass(frozen=True)
class Case:
    """vLLM's options, and whether requests have seeds and ask for log-probs."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    seeded: bool = True
    logprobs: bool = True


def cases(settings: EngineSettings) -> list[Case]:
    """The options that rollout.engines.vllm sets come first; each later case changes one thing."""
    toolkit: dict[str, Any] = dict(
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(8192, settings.max_tokens),
        logprobs_mode="processed_logprobs",
        enforce_eager=True,
        distributed_executor_backend="uni",
    )
    return [
        Case("toolkit", toolkit),
        Case("toolkit, no seeds", toolkit, seeded=False),
        Case("toolkit, no log-probs", toolkit, logprobs=False),
        Case("CUDA graphs", {**toolkit, "enforce_eager": False}),
        Case("vLLM's defaults", {"logprobs_mode": "processed_logprobs"}),
    ]


class BareEngine:
    """One vLLM at a time, rebuilt only where the options change."""

    def __init__(self, work: Work, settings: EngineSettings):
        self._base: dict[str, Any] = dict(
            model=str(work.folder),
            dtype=settings.dtype,
            max_model_len=settings.max_tokens,
            max_num_seqs=settings.max_sequences,
            gpu_memory_utilization=settings.gpu_memory_frac,
            disable_log_stats=True,
            generation_config="vllm",
            seed=0,
        )
        self._llm: Any = None
        self._options: dict[str, Any] | None = None

    def with_options(self, options: dict[str, Any]) -> Any:
        from vllm import LLM

        if options != self._options:
            self.close()
            self._llm, self._options = LLM(**self._base, **options), options
        return self._llm

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._options = None
        gc.collect()


def measure_case(work: Work, engine: BareEngine, case: Case) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = engine.with_options(case.options)
    requests = work.requests("bare")
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=work.completion_tokens,
            seed=request.seed if case.seeded else None,
            logprobs=0 if case.logprobs else None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            ignore_eos=True,
        )
        for request in requests
    ]
    prompts = [{"prompt_token_ids": list(request.tokens)} for request in requests]
    for round_ in range(2):
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        record_generation(work, case.label, round_, seconds, sum(len(output.outputs[0].token_ids) for output in outputs))


def try_faster_settings(work: Work, settings: EngineSettings) -> None:
    engine = BareEngine(work, settings)
    for case in cases(settings)[:3] if DRY else cases(settings):  # on a CPU the others only cost time
        attempt(case.label, partial(measure_case, work, engine, case))
    engine.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--completion-tokens", type=int, default=256)
    parser.add_argument("--sleep", action="store_true", help="measure sleep and wake too")
    parser.add_argument("--faster", action="store_true", help="compare settings of vLLM instead")
    arguments = parser.parse_args()
    if DRY:
        vars(arguments).update(model="tiny", sequences=8, prompt_tokens=6, completion_tokens=12)
    return arguments


def main() -> int:
    arguments = parse_arguments()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # before vLLM is imported: the engine lives in this process
    folder = random_model(arguments.model, 4096)
    work = Work(arguments.model, folder, arguments.sequences, arguments.prompt_tokens, arguments.completion_tokens)
    settings = EngineSettings(
        max_sequences=work.sequences,
        max_tokens=work.prompt_tokens + work.completion_tokens,
        num_threads=os.cpu_count() or 1,
        gpu_memory_frac=0.4,
        sleeps=arguments.sleep,
    )
    check: Callable[[Work, EngineSettings], None] = try_faster_settings if arguments.faster else check_engine
    check(work, replace(settings, sleeps=False) if arguments.faster else settings)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
