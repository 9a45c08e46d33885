"""An engine whose completions come from a function, for tests and for trying a recipe in seconds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rollout.errors import EngineError
from rollout.text import CompletionText, end_ids
from rollout.types import Completion, Finished, Request
from rollout.weight_sync.weights import WeightUpdate, unpack_weights

Script = Callable[[Request, int], Sequence[int]]


class ScriptedEngine:
    """``script(request, version)`` returns the completion's token ids; every token has probability 1/2."""

    def __init__(self, script: Script, keep: Sequence[str] = ()):
        self.script, self.keep = script, keep
        self.version = -1
        self._waiting: list[Request] = []
        self._text: Any = None
        self._ends: set[int] = set()

    def load_model(self, folder: Path, version: int) -> None:
        """Load only the tokenizer and the end token, so that a scripted worker needs neither torch nor transformers."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._text = CompletionText(tokenizer, tokenizer.get_added_tokens_decoder(), self.keep)
        self._ends = set(end_ids(folder))
        self.version = version

    def load_weights(self, update: WeightUpdate) -> None:
        unpack_weights(update)
        self.version = update.version

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting += requests

    def poll(self, timeout_s: float) -> list[Finished]:
        done, self._waiting = self._waiting, []
        return [self._finish(request) for request in done]

    def cancel(self, request_ids: Iterable[str]) -> None:
        gone = set(request_ids)
        self._waiting = [request for request in self._waiting if request.id not in gone]

    def sleep(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self._waiting = []

    def _finish(self, request: Request) -> Finished:
        tokens = tuple(self.script(request, self.version))[: request.sampling.max_tokens]
        stop = request.sampling.stop
        ends = (number for number in range(1, len(tokens) + 1) if self._text.has_stopped(tokens[:number], stop))
        tokens = tokens[: next(ends, None)] if stop else tokens
        stopped = bool(tokens) and (tokens[-1] in self._ends or self._text.has_stopped(tokens, stop))
        text = self._text.of(tokens, stop)
        half = (-0.6931471805599453,) * len(tokens)
        return Finished(
            request.id, Completion.of(tokens, half, (True,) * len(tokens), text, "stop" if stopped else "length", ((0, self.version),))
        )


def load_script(ref: str, base: Path) -> Script:
    """The function named by ``./file.py:name``, relative to ``base``. Raises EngineError if there is none."""
    file, _, name = ref.rpartition(":")
    path = (base / file).resolve()
    if not path.is_file():
        raise EngineError(f"rollout.script {ref!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_user_script_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise EngineError(f"rollout.script {ref!r}: there is no function {name!r} in {path}")
    return getattr(module, name)
