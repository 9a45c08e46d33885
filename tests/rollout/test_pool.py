"""Tests of the pool with real Ray actors around the scripted engine: workers that die, hang, or return what they must not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rollout.engines.base import EngineSettings
from rollout.errors import EngineError, WeightSyncError
from rollout.pool import PoolSettings, RolloutPool, _actor_options
from rollout.types import Completion, Prompt, SamplingParams
from rollout.weight_sync.weights import pack_weights
from rollout.worker import RolloutWorker

SCRIPT = """
import time
from pathlib import Path

def counted(request, version):
    return [40 + (request.seed >> 8 * i) % 150 for i in range(4)] + [40 + version]

def slow(request, version):
    time.sleep(0.05)
    return counted(request, version)

def bad_id(request, version):
    return [99999]

def refuses(request, version):
    raise ValueError("this prompt is refused")
"""
PROMPTS = [Prompt(f"p{i}", (5, 6, 7 + i)) for i in range(6)]
MakePool = Callable[..., RolloutPool]


@pytest.fixture
def make_pool(local_ray: None, tmp_path: Path, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePool]:
    """Makes pools of scripted workers that hold the tiny model. ``fault`` happens once, or every time with ``always``."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    made: list[RolloutPool] = []

    def make(
        function: str = "counted", *, fault: str = "", always: bool = False, load: bool = True, max_sequences: int = 256, **workers: Any
    ) -> RolloutPool:
        if fault:
            monkeypatch.setenv("GRPO_FAULT", fault)
            if not always:
                monkeypatch.setenv("GRPO_FAULT_MARK", str(tmp_path / "happened"))
        settings = PoolSettings(**{"workers": 2, "backoff_s": 0.05, **workers})
        pool = RolloutPool(
            "scripted", EngineSettings(max_tokens=64, max_sequences=max_sequences), settings, f"./script.py:{function}", tmp_path
        )
        made.append(pool)
        if load:
            pool.load_model(tiny_qwen2, version=0)
        return pool

    yield make
    for pool in made:
        pool.close()


def wait_until_dead(worker: Any) -> None:
    """A killed actor may answer for a while."""
    deadline = time.monotonic() + 30
    with pytest.raises(ray.exceptions.RayActorError):
        while time.monotonic() < deadline:
            ray.get(worker.cancel.remote([]), timeout=30)


def kill(worker: Any) -> None:
    ray.kill(worker)
    wait_until_dead(worker)


def sample(pool: RolloutPool, step: int = 0, deadline_s: float = 30.0, prompts: list[Prompt] = PROMPTS) -> list[list[Completion]]:
    return pool.sample(prompts, 3, SamplingParams(8), seed=1, step=step, deadline_s=deadline_s, progress=lambda *_: None)


def sync(pool: RolloutPool, version: int, deadline_s: float = 60.0) -> None:
    update = pack_weights([("w", torch.full((4, 4), float(version)))], version, torch.bfloat16)
    pool.sync(lambda: ray.put(update), version, deadline_s)


def tokens(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[tuple(completion.tokens.tolist()) for completion in group] for group in groups]


def at_version(version: int, groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    """The tokens of ``groups`` as another weights version writes them: its number is in the last token."""
    return [[(*found[:-1], 40 + version) for found in group] for group in tokens(groups)]


def live_slots(pool: RolloutPool) -> list[int]:
    return [slot.index for slot in pool.supervisor.slots if slot.is_live]


@pytest.mark.parametrize("dispatch", ["fixed", "balanced"])
def test_samples_return_in_the_order_of_their_prompts(make_pool: MakePool, dispatch: str) -> None:
    found = sample(make_pool(dispatch=dispatch))
    assert [len(group) for group in found] == [3] * 6
    alone = sample(make_pool(workers=1))
    assert tokens(found) == tokens(alone)  # a sample follows from prompt, step and seed, not from the worker
    assert len({sampled for group in tokens(found) for sampled in group}) == 18


@pytest.mark.parametrize(
    ("dispatch", "point"),
    [
        ("fixed", "generating:1"),
        ("balanced", "syncing:1"),
        *(pytest.param(how, f"{where}:1", marks=pytest.mark.faults) for how in ("fixed", "balanced") for where in ("starting", "idle")),
        pytest.param("balanced", "generating:1", marks=pytest.mark.faults),
        pytest.param("fixed", "syncing:1", marks=pytest.mark.faults),
    ],
)
def test_a_killed_worker_changes_no_sample(make_pool: MakePool, dispatch: str, point: str) -> None:
    undisturbed = sample(make_pool(workers=1))
    pool = make_pool(dispatch=dispatch, fault=f"kill:{point}@1")
    assert tokens(sample(pool)) == tokens(undisturbed)
    if point.startswith("idle"):
        wait_until_dead(pool.supervisor.slots[1].actor)
    sync(pool, 1)
    again = sample(pool)
    assert tokens(again) == at_version(1, undisturbed)
    assert {completion.version for group in again for completion in group} == {1}
    assert pool.num_lost == 1


def test_other_workers_take_over_from_a_given_up_one(make_pool: MakePool) -> None:
    said: list[str] = []
    pool = make_pool(fault="kill:generating:1@1", always=True, max_restarts=2)
    pool.supervisor.say = said.append
    assert len(sample(pool)) == 6
    assert pool.num_lost == 3 and live_slots(pool) == [0]
    assert "given up after 2 restarts" in said[-2] and "not bit-for-bit reproducible" in said[-1]
    assert len(sample(pool, step=1)) == 6


def test_too_few_workers_left_stop_the_run(make_pool: MakePool) -> None:
    pool = make_pool(fault="kill:generating:1", always=True, max_restarts=1, min_workers=2)
    with pytest.raises(
        EngineError, match=r"1 rollout worker is left and rollout.min_workers is 2; the last one lost, worker \d, died while generating"
    ):
        sample(pool)


def test_a_hung_worker_is_replaced_after_its_deadline(make_pool: MakePool) -> None:
    pool = make_pool(fault="hang:generating:1@0")
    started = time.monotonic()
    assert len(sample(pool, deadline_s=4.0)) == 6
    assert time.monotonic() - started > 4.0 and pool.num_lost == 1


@pytest.mark.parametrize("dispatch", ["fixed", "balanced"])
def test_a_worker_that_hangs_in_a_sync_is_replaced(make_pool: MakePool, dispatch: str) -> None:
    pool = make_pool(fault="hang:syncing:2@1", dispatch=dispatch)
    undisturbed = sample(pool)
    sync(pool, 1)  # the workers import torch here
    started = time.monotonic()
    sync(pool, 2, deadline_s=6.0)
    assert time.monotonic() - started > 6.0 and pool.num_lost == 1
    assert tokens(sample(pool)) == at_version(2, undisturbed)


@pytest.mark.faults
def test_a_worker_that_hangs_at_start_is_replaced(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.supervisor.START_DEADLINE_S", 8.0)
    pool = make_pool(fault="hang:starting:1@1")
    assert len(sample(pool)) == 6 and pool.num_lost == 1


@pytest.mark.faults
def test_hanging_in_every_sync_ends_the_run(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(fault="hang:syncing:1@1", always=True, max_restarts=1, min_workers=2)
    monkeypatch.setattr("rollout.supervisor.START_DEADLINE_S", 20.0)  # a replacement's start ends with a sync
    with pytest.raises(EngineError, match=r"rollout.min_workers is 2; the last one lost, worker 1, did not start within 20 s"):
        sync(pool, 1, deadline_s=20.0)  # the other worker has to import torch


def test_others_take_over_if_no_replacement_starts(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(max_restarts=2)
    undisturbed = sample(pool)
    monkeypatch.setenv("GRPO_FAULT", "kill:starting:1@1")
    pool._actor = ray.remote(RolloutWorker).options(**_actor_options("scripted", pool.settings))
    kill(pool.supervisor.slots[1].actor)
    assert tokens(sample(pool)) == tokens(undisturbed)
    assert pool.num_lost == 3 and live_slots(pool) == [0]


@pytest.mark.parametrize(("dispatch", "polls"), [("fixed", 2), ("balanced", 9)])
def test_samples_name_the_weights_that_changed_in_flight(make_pool: MakePool, dispatch: str, polls: int) -> None:
    """A worker is lost meanwhile. What it left is generated by the new weights: by its replacement if dispatch is fixed, else by the others."""
    pool = make_pool("slow", dispatch=dispatch, max_sequences=2, fault=f"kill:generating:{polls}@1")
    at_version_0 = tokens(sample(pool, prompts=PROMPTS * 5))

    def progress(done: int, total: int) -> None:
        if pool.version == 0:
            sync(pool, 1)

    found = pool.sample(PROMPTS * 5, 3, SamplingParams(8), seed=1, step=0, deadline_s=30, progress=progress)
    assert {completion.version for group in found for completion in group} == {0, 1}
    for group, expected in zip(found, at_version_0, strict=True):
        assert [(*c.tokens[:-1].tolist(), c.tokens[-1] - c.version) for c in group] == expected


def test_a_pool_can_sample_again_after_progress_raised(make_pool: MakePool) -> None:
    pool = make_pool("slow")
    undisturbed = sample(pool)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.sample(PROMPTS * 5, 3, SamplingParams(8), seed=1, step=7, deadline_s=30, progress=stop)
    assert tokens(sample(pool)) == tokens(undisturbed)


def test_a_replacement_serves_the_version_of_the_others(make_pool: MakePool) -> None:
    pool = make_pool()
    undisturbed = sample(pool)
    for version in (1, 2):
        sync(pool, version)
    kill(pool.supervisor.slots[1].actor)
    assert tokens(sample(pool)) == at_version(2, undisturbed)
    assert pool.num_lost == 1


def test_an_engine_that_always_fails_ends_the_run(make_pool: MakePool) -> None:
    with pytest.raises(EngineError, match=r"failed while generating \(ValueError\('this prompt is refused'\)\)"):
        sample(make_pool("refuses", max_restarts=1))


def test_token_ids_outside_the_vocabulary_are_errors(make_pool: MakePool) -> None:
    with pytest.raises(EngineError, match=r"sample 0\.\d\.\d holds the token id 99999, and the model's vocabulary has \d+"):
        sample(make_pool("bad_id"))
    with pytest.raises(EngineError, match=r"prompt 'x' holds the token id -1"):
        sample(make_pool(), prompts=[Prompt("x", (5, -1))])


def test_a_sync_that_fails_twice_names_the_tensor(make_pool: MakePool) -> None:
    pool = make_pool(fault="drop", always=True)
    with pytest.raises(WeightSyncError, match="w was not received"):
        sync(pool, 1)


def test_a_prompt_twice_in_a_step_gets_different_samples(make_pool: MakePool) -> None:
    first, second = tokens(sample(make_pool(), prompts=[PROMPTS[0], PROMPTS[0]]))
    assert not set(first) & set(second)


def test_closing_a_pool_ends_a_sample_call(make_pool: MakePool) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pool, is_generating = make_pool("slow", workers=1), threading.Event()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(
            lambda: pool.sample(PROMPTS * 20, 3, SamplingParams(8), seed=1, step=0, deadline_s=30, progress=lambda *_: is_generating.set())
        )
        assert is_generating.wait(60)
        pool.close()
        with pytest.raises(EngineError):
            future.result(timeout=20)
