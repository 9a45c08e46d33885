"""The transformers engine, for machines where vLLM cannot run. It is slow, because the requests of a batch start and end together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rollout.engines.base import EngineSettings
from rollout.errors import WeightSyncError
from rollout.text import CompletionText, end_ids
from rollout.types import Completion, Finish, Finished, Request, SamplingParams
from rollout.weight_sync.weights import WeightUpdate, unpack_weights


@dataclass(eq=False)
class _Row:
    """A running request."""

    request: Request
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)
    finish: Finish | None = None
    text: str | None = None


class HfEngine:
    """A RolloutEngine that runs transformers in this process."""

    def __init__(self, settings: EngineSettings):
        torch.set_num_threads(settings.num_threads)
        self.settings = settings
        self.version = -1
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._waiting: list[Request] = []
        self._rows: list[_Row] = []
        self._model: Any = None

    def load_model(self, folder: Path, version: int) -> None:
        self.close()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, self.settings.dtype), use_safetensors=True)
        self._model = model.to(self._device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._text = CompletionText(tokenizer, tokenizer.added_tokens_decoder, self.settings.keep)
        self._ends = {*end_ids(folder), tokenizer.eos_token_id}
        self.version = version

    def load_weights(self, update: WeightUpdate) -> None:
        received = unpack_weights(update)
        held = self._model.state_dict()
        unknown = sorted(received.keys() - held.keys())
        if unknown:
            raise WeightSyncError(f"transformers has no tensor {unknown[0]} in memory ({len(unknown)} names differ); rebuild the engine")
        for name, weight in received.items():
            if held[name].shape != weight.shape:
                raise WeightSyncError(f"{name} has shape {list(held[name].shape)}, received {list(weight.shape)}")
            held[name].copy_(weight)
        wrong = [name for name, weight in received.items() if not torch.equal(held[name].to(weight.dtype), weight.to(held[name].device))]
        if wrong:
            raise WeightSyncError(
                f"after loading version {update.version}, transformers holds other weights than were sent: {', '.join(wrong)}"
            )
        self.version = update.version
        self._prefill([row for row in self._rows if row.finish is None])

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting += requests

    def poll(self, timeout_s: float) -> list[Finished]:
        deadline = time.monotonic() + timeout_s
        finished: list[Finished] = []
        while not finished and (self._rows or self._waiting) and time.monotonic() < deadline:
            if not self._rows:
                self._begin()
            self._step()
            finished = [self._finished(row) for row in self._rows if row.finish is not None and row.text is None]
            if all(row.finish is not None for row in self._rows):
                self._rows = []
        return finished

    def cancel(self, request_ids: Iterable[str]) -> None:
        gone = set(request_ids)
        self._waiting = [request for request in self._waiting if request.id not in gone]
        for row in self._rows:
            if row.request.id in gone and row.finish is None:
                row.finish, row.text = "abort", ""

    def sleep(self) -> None:
        self._model.to("cpu")

    def wake(self) -> None:
        self._model.to(self._device)

    def close(self) -> None:
        self._model, self._rows, self._waiting = None, [], []

    def _begin(self) -> None:
        """The next requests as one batch."""
        taken, self._waiting = self._waiting[: self.settings.max_sequences], self._waiting[self.settings.max_sequences :]
        self._prefill([_Row(request, torch.Generator(self._device).manual_seed(request.seed)) for request in taken])

    def _prefill(self, rows: list[_Row]) -> None:
        """Rows as one batch, padded on the left; what was computed of those already begun, by other weights, is forgotten."""
        self._rows = rows
        known = [(*row.request.tokens, *row.tokens) for row in rows]
        longest = max(map(len, known), default=0)
        self._input = torch.zeros(len(rows), longest, dtype=torch.long, device=self._device)
        self._mask = torch.zeros_like(self._input)
        for row, tokens in enumerate(known):
            self._input[row, longest - len(tokens) :] = torch.tensor(tokens)
            self._mask[row, longest - len(tokens) :] = 1
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None

    @torch.no_grad()
    def _step(self) -> None:
        """Sample one token for every row. Rows that have ended stay in the batch, and their tokens are ignored."""
        output = self._model(
            input_ids=self._input,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits_BV = output.logits[:, -1].float()
        logprobs_BV = torch.empty_like(logits_BV)
        for sampling in {row.request.sampling for row in self._rows}:
            which = [b for b, row in enumerate(self._rows) if row.request.sampling == sampling]
            logprobs_BV[which] = _filters(sampling)(self._input[which], logits_BV[which]).log_softmax(-1)
        tokens = [self._sample(row, logprobs_BV[b]) for b, row in enumerate(self._rows)]
        self._input = torch.tensor(tokens, device=self._device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=-1)
        self._positions = self._positions[:, -1:] + 1

    def _sample(self, row: _Row, logprobs_V: Tensor) -> int:
        if row.finish is not None:
            return row.tokens[-1] if row.tokens else 0
        if row.request.sampling.temperature == 0:
            token = int(logprobs_V.argmax())
        else:
            token = int(torch.multinomial(logprobs_V.exp(), 1, generator=row.generator))
        if not row.versions or row.versions[-1][1] != self.version:
            row.versions.append((len(row.tokens), self.version))
        row.tokens.append(token)
        row.logprobs.append(float(logprobs_V[token]))
        if token in self._ends or self._text.has_stopped(row.tokens, row.request.sampling.stop):
            row.finish = "stop"
        elif len(row.tokens) >= row.request.sampling.max_tokens:
            row.finish = "length"
        return token

    def _finished(self, row: _Row) -> Finished:
        row.text = self._text.of(row.tokens, row.request.sampling.stop)
        assert row.finish is not None
        num = len(row.tokens)
        completion = Completion.of(row.tokens, row.logprobs, (True,) * num, row.text, row.finish, tuple(row.versions))
        return Finished(row.request.id, completion)


def _filters(sampling: SamplingParams) -> LogitsProcessorList:
    """The logits processors of transformers in vLLM's order: temperature, min-p, top-k, top-p."""
    filters = LogitsProcessorList()
    if sampling.temperature not in (0, 1):
        filters.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.min_p > 0:
        filters.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k > 0:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    return filters
