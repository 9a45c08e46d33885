"""How does a reward ask an OpenAI-compatible endpoint? Many requests at once, bounded in number, rate, retries and time, and none twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Self

from rewards.errors import RewardError, one_line

RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 529}
MAX_PAUSE_S = 30.0
MAX_REMEMBERED = 100_000

Message = Mapping[str, str]


@dataclass(frozen=True)
class Endpoint:
    """Where and how one asks.

    key_env              the environment variable that holds the key; the key itself stands in no setting, log or message
    retries              of a request that met a busy server (429, 5xx), a lost connection or silence for timeout_s
    requests_per_minute  at most so many, evenly spaced; None: as fast as concurrency allows
    request              more keys of the request, for servers and models that want them; None removes one
    """

    base_url: str
    model: str
    key_env: str | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    concurrency: int = 16
    requests_per_minute: float | None = None
    timeout_s: float = 60.0
    retries: int = 4
    request: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str | None:
        return os.environ.get(self.key_env) if self.key_env else None

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The request as it is sent."""
        ours = {"model": self.model, "messages": list(messages), "temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in {**ours, **self.request}.items() if value is not None}

    def identity(self, messages: Sequence[Message]) -> str:
        """A hash of all that a reply follows from."""
        return hashlib.sha256(json.dumps([self.base_url, self.body(messages)], sort_keys=True).encode()).hexdigest()


class Replies:
    """Replies already had, by identity: the last 100,000 in memory, and all in an SQLite file where one is named."""

    def __init__(self, file: str | None = None):
        self._file = file
        self._memory: OrderedDict[str, str] = OrderedDict()
        if file is not None:
            with closing(self._open()) as base:
                base.execute("CREATE TABLE IF NOT EXISTS replies (identity TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def get(self, identity: str) -> str | None:
        if identity in self._memory:
            self._memory.move_to_end(identity)
            return self._memory[identity]
        if self._file is None:
            return None
        with closing(self._open()) as base:
            row = base.execute("SELECT reply FROM replies WHERE identity = ?", (identity,)).fetchone()
        return row and row[0]

    def put(self, identity: str, reply: str) -> None:
        self._memory[identity] = reply
        if len(self._memory) > MAX_REMEMBERED:
            self._memory.popitem(last=False)
        if self._file is not None:
            with closing(self._open()) as base, base:
                base.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (identity, reply))

    def _open(self) -> sqlite3.Connection:
        assert self._file is not None
        return sqlite3.connect(self._file, timeout=30.0)


class _BusyError(Exception):
    """A failure that may pass: the server is busy, silent or unreachable."""

    def __init__(self, text: str, pause_s: float | None = None):
        super().__init__(text)
        self.pause_s = pause_s


@dataclass
class Asking:
    """One batch of requests to an endpoint: ``async with Asking(endpoint, replies) as asking: await asking.reply(messages)``.

    Once as many requests as may run at once have failed with all their retries, and none has been answered, the endpoint is taken for dead
    for the rest of the batch.
    """

    endpoint: Endpoint
    replies: Replies
    num_answered: int = 0
    num_failed: int = 0
    _free_at: float = 0.0
    _pending: dict[str, asyncio.Future[str]] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        import httpx2

        headers = {"Authorization": f"Bearer {self.endpoint.key}"} if self.endpoint.key else {}
        limits = httpx2.Limits(max_connections=self.endpoint.concurrency)
        self._client = httpx2.AsyncClient(headers=headers, timeout=self.endpoint.timeout_s, limits=limits)
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        return self

    async def __aexit__(self, *_: object) -> None:
        for pending in self._pending.values():
            pending.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._client.aclose()

    async def reply(self, messages: Sequence[Message]) -> str:
        """The model's text. Equal requests at temperature 0 are one. Raises RewardError where the endpoint gives none."""
        if self.endpoint.temperature > 0:
            return await self._fetch(messages)
        identity = self.endpoint.identity(messages)
        known = self.replies.get(identity)
        if known is not None:
            return known
        if identity not in self._pending:
            self._pending[identity] = asyncio.ensure_future(self._fetch(messages))
        return await asyncio.shield(self._pending[identity])

    def remember(self, messages: Sequence[Message], reply: str) -> None:
        """Keeps a reply that could be read, if asking again would only give it again."""
        if self.endpoint.temperature == 0:
            self.replies.put(self.endpoint.identity(messages), reply)

    async def _fetch(self, messages: Sequence[Message]) -> str:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        tries = AsyncRetrying(
            stop=stop_after_attempt(self.endpoint.retries + 1), wait=_pause_s, retry=retry_if_exception_type(_BusyError), reraise=True
        )
        async with self._slots:
            if self.num_failed >= self.endpoint.concurrency and not self.num_answered:
                raise RewardError(f"{self.endpoint.base_url} answered none of {self.num_failed} requests and was not asked again")
            try:
                reply = await tries(self._post, messages)
            except (_BusyError, RewardError) as error:
                self.num_failed += isinstance(error, _BusyError)
                raise RewardError(self._without_key(f"{self.endpoint.base_url}: {error}")) from None
            self.num_answered += 1
            return reply

    async def _post(self, messages: Sequence[Message]) -> str:
        import httpx2

        await self._take_turn()
        ours = self.endpoint
        try:
            async with asyncio.timeout(ours.timeout_s):
                response = await self._client.post(f"{ours.base_url.rstrip('/')}/chat/completions", json=ours.body(messages))
        except TimeoutError:
            raise _BusyError(f"no reply within {ours.timeout_s:g} s") from None
        except httpx2.HTTPError as error:
            raise _BusyError(one_line(error)) from None
        if response.status_code in RETRIED_STATUS:
            raise _BusyError(f"HTTP {response.status_code}", _asked_pause_s(response.headers))
        if not response.is_success:
            said = "" if response.status_code in (401, 403) else f": {' '.join(response.text.split())[:200]!r}"  # those quote keys
            raise RewardError(f"HTTP {response.status_code}{said}")
        return _text_of(response)

    async def _take_turn(self) -> None:
        """Waits until the rate allows one more request."""
        if self.endpoint.requests_per_minute is None:
            return
        now = time.monotonic()
        mine = max(now, self._free_at)
        self._free_at = mine + 60.0 / self.endpoint.requests_per_minute
        await asyncio.sleep(mine - now)

    def _without_key(self, text: str) -> str:
        return text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text


def _text_of(response: Any) -> str:
    try:
        text = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise RewardError("the reply is no chat completion; base_url should end where /chat/completions begins, often in /v1") from None
    return text if isinstance(text, str) else ""


def _pause_s(state: Any) -> float:
    """As long as the server asked for, else 0.25 s doubling, plus up to 0.25 s by chance; never more than 30 s."""
    from tenacity import wait_exponential, wait_random

    asked_s = getattr(state.outcome.exception(), "pause_s", None)
    pause_s = wait_exponential(multiplier=0.25)(state) + wait_random(0, 0.25)(state) if asked_s is None else asked_s
    return min(pause_s, MAX_PAUSE_S)


def _asked_pause_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; a date, which few servers send, counts as nothing."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
