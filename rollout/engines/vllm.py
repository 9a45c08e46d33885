"""The vLLM engine, in the caller's own process: requests in, samples out, weights replaced in place."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rollout.engines.base import EngineSettings
from rollout.errors import EngineError, WeightSyncError
from rollout.faults import fault
from rollout.text import CompletionText, end_ids
from rollout.types import Completion, Finish, Finished, Request
from rollout.weight_sync.readback import mismatched_weights
from rollout.weight_sync.weights import WeightUpdate, unpack_weights

GATHER_S = 0.1  # how long a finished request waits for others: during the round trip of an answer the engine generates nothing


def environment(settings: EngineSettings) -> dict[str, str]:
    """Environment variables a process must have before it imports vLLM."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's process: weights need no second copy
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(settings.kv_cache_gib))),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(settings.num_threads),
        "TOKENIZERS_PARALLELISM": "false",
    }


class VllmEngine:
    """A RolloutEngine that runs vLLM in this process."""

    def __init__(self, settings: EngineSettings):
        os.environ.update({key: value for key, value in environment(settings).items() if key not in os.environ})
        self.settings = settings
        self.version = -1
        self._llm: Any = None
        self._stops: dict[str, tuple[str, ...]] = {}  # by request id, where there are any
        self._can_sleep = False  # vLLM's sleep mode needs a GPU

    def load_model(self, folder: Path, version: int) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        self.close()
        self._can_sleep = self.settings.sleeps and not current_platform.is_cpu()
        try:
            self._llm = LLM(
                model=str(folder),
                dtype=self.settings.dtype,
                max_model_len=self.settings.max_tokens,
                max_num_seqs=self.settings.max_sequences,
                # A seeded request whose prompt is prefilled in pieces fails on CPU, so every prompt must fit one batch.
                enable_chunked_prefill=False,
                max_num_batched_tokens=max(8192, self.settings.max_tokens),
                gpu_memory_utilization=self.settings.gpu_memory_frac,
                # Samples share their prompt's keys and values in whole blocks; a short prompt would fill none of vLLM's 128-token CPU blocks.
                block_size=32 if current_platform.is_cpu() else None,
                logprobs_mode="processed_logprobs",  # of the sampling distribution: after temperature and filters
                enforce_eager=True,
                tensor_parallel_size=self.settings.tensor_parallel,
                distributed_executor_backend="uni" if self.settings.tensor_parallel == 1 else "mp",
                enable_sleep_mode=self._can_sleep,
                disable_log_stats=True,
                generation_config="vllm",  # a model's own generation defaults must not change the distribution that is trained
                seed=0,
            )
        except Exception as error:  # vLLM raises errors of every kind, and some cannot be pickled
            raise EngineError(f"{type(error).__name__}: {error}") from error
        tokenizer = self._llm.get_tokenizer()
        self._text = CompletionText(tokenizer, tokenizer.added_tokens_decoder, self.settings.keep)
        self._ends = end_ids(folder)
        self._set_version(version)

    def load_weights(self, update: WeightUpdate) -> None:
        if self.settings.tensor_parallel > 1:
            raise EngineError("the weights of a tensor-parallel engine cannot be read back; rebuild the engine instead")
        tensors = unpack_weights(update)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors.items())})
        if fault() != "stale_kernel":
            self._llm.apply_model(_repack_embedding_kernels)
        # Unfinished requests lose their keys and values too, so that their next token is sampled from the new weights alone.
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise EngineError("vLLM did not reset its prefix cache, so it would use keys of the old weights")
        problems = self._llm.apply_model(lambda model: mismatched_weights(model, tensors, update.version))[0]
        if problems:
            raise WeightSyncError(
                f"after loading version {update.version}, vLLM computes with other weights than were sent: {'; '.join(problems)}"
            )
        self._set_version(update.version)

    def submit(self, requests: Sequence[Request]) -> None:
        import vllm
        from vllm.sampling_params import RequestOutputKind

        for request in requests:
            sampling = request.sampling
            params = vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop) or None,
                stop_token_ids=self._ends,
                skip_special_tokens=False,  # a stop string may be one
                seed=request.seed if sampling.temperature > 0 else None,
                logprobs=0,
                detokenize=bool(sampling.stop),  # token by token, which is slow and only needed to find stop strings
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._llm.llm_engine.add_request(request.id, {"prompt_token_ids": list(request.tokens)}, params)
            if sampling.stop:
                self._stops[request.id] = sampling.stop

    def poll(self, timeout_s: float) -> list[Finished]:
        deadline = time.monotonic() + timeout_s
        finished: list[Finished] = []
        while self._llm.llm_engine.has_unfinished_requests() and time.monotonic() < deadline:
            new = [self._finished(output) for output in self._llm.llm_engine.step() if output.finished]
            if new and not finished:
                deadline = min(deadline, time.monotonic() + GATHER_S)
            finished += new
        return finished

    def cancel(self, request_ids: Iterable[str]) -> None:
        for request_id in (names := list(request_ids)):
            self._stops.pop(request_id, None)
        self._llm.llm_engine.abort_request(names)

    def sleep(self) -> None:
        if self._can_sleep:
            self._llm.sleep(level=1)  # weights move to host memory; keys and values are dropped

    def wake(self) -> None:
        if self._can_sleep:
            self._llm.wake_up()

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()

    def _finished(self, output: Any) -> Finished:
        sample = output.outputs[0]
        tokens = tuple(sample.token_ids)
        logprobs = [chosen[token].logprob for token, chosen in zip(tokens, sample.logprobs, strict=True)]
        text = self._text.of(tokens, self._stops.pop(output.request_id, ()))
        finish: Finish = sample.finish_reason if sample.finish_reason in ("stop", "length") else "abort"
        versions = tuple((span.start, int(span.version)) for span in sample.weight_versions or ()) or ((0, self.version),)
        return Finished(output.request_id, Completion.of(tokens, logprobs, (True,) * len(tokens), text, finish, versions))

    def _set_version(self, version: int) -> None:
        self.version = version
        self._llm.llm_engine.set_weight_version(str(version))


def _repack_embedding_kernels(model: Any) -> None:
    """Rebuild the packed copy of lm_head that CPU kernels use: vLLM's reload rebuilds those of linear layers only."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
