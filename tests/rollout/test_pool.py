"""The pool with real Ray actors around the scripted engine: what it does when workers die, hang, lie, join; what it never does."""

from __future__ import annotations

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
from rollout.types import Completion, Prompt, Sampling
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
    raise ValueError("this prompt I will not answer")
"""
PROMPTS = [Prompt(f"p{i}", (5, 6, 7 + i)) for i in range(6)]
MakePool = Callable[..., RolloutPool]


@pytest.fixture
def make_pool(local_ray: None, tmp_path: Path, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePool]:
    """A pool of scripted workers that hold the tiny model; ``fault`` happens once, or every time with ``always``."""
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


def end(worker: Any) -> None:
    """And wait until it has: a killed actor may answer for a while."""
    ray.kill(worker)
    with pytest.raises(ray.exceptions.RayActorError):
        while True:
            ray.get(worker.cancel.remote([]), timeout=30)


def drawn(pool: RolloutPool, step: int = 0, deadline_s: float = 30.0, prompts: list[Prompt] = PROMPTS) -> list[list[Completion]]:
    return pool.sample(prompts, 3, Sampling(8), seed=1, step=step, deadline_s=deadline_s, progress=lambda *_: None)


def synced(pool: RolloutPool, version: int, deadline_s: float = 60.0) -> None:
    update = pack_weights([("w", torch.full((4, 4), float(version)))], version, torch.bfloat16)
    pool.sync(lambda: ray.put(update), version, deadline_s)


def expected(version: int, undisturbed: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[(*completion.tokens[:-1], 40 + version) for completion in group] for group in undisturbed]


def tokens(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.tokens for completion in group] for group in groups]


@pytest.mark.parametrize("dispatch", ["fixed", "balanced"])
def test_every_sample_comes_back_at_its_place(make_pool: MakePool, dispatch: str) -> None:
    found = drawn(make_pool(dispatch=dispatch))
    assert [len(group) for group in found] == [3] * 6
    alone = drawn(make_pool(workers=1))
    assert tokens(found) == tokens(alone)  # what is drawn follows from prompt, step and seed, not from who draws it
    assert len({completion.tokens for group in found for completion in group}) == 18


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
def test_a_killed_worker_costs_nothing_but_time(make_pool: MakePool, dispatch: str, point: str) -> None:
    undisturbed = drawn(make_pool(workers=1))
    pool = make_pool(dispatch=dispatch, fault=f"kill:{point}@1")
    assert tokens(drawn(pool)) == tokens(undisturbed)
    time.sleep(0.3)  # in which an idle worker is killed
    synced(pool, 1)
    again = drawn(pool)
    assert tokens(again) == expected(1, undisturbed)
    assert {completion.version for group in again for completion in group} == {1}
    assert pool.num_lost == 1


def test_a_worker_that_dies_every_time_is_given_up_and_the_others_do_its_work(make_pool: MakePool) -> None:
    said: list[str] = []
    pool = make_pool(fault="kill:generating:1@1", always=True, max_restarts=2)
    pool.say = said.append
    assert len(drawn(pool)) == 6
    assert pool.num_lost == 3 and pool.num_live == 1
    assert "given up after 2 restarts" in said[-2] and "will not repeat bit for bit" in said[-1]
    assert len(drawn(pool, step=1)) == 6


def test_too_few_workers_left_stop_the_run_and_say_why(make_pool: MakePool) -> None:
    pool = make_pool(fault="kill:generating:1", always=True, max_restarts=1, min_workers=2)
    with pytest.raises(
        EngineError, match=r"1 rollout worker is left and rollout.min_workers is 2; the last one lost, worker \d, died while generating"
    ):
        drawn(pool)


def test_a_hung_worker_is_replaced_after_its_deadline(make_pool: MakePool) -> None:
    pool = make_pool(fault="hang:generating:1@0")
    started = time.monotonic()
    assert len(drawn(pool, deadline_s=4.0)) == 6
    assert 4.0 < time.monotonic() - started < 30 and pool.num_lost == 1


@pytest.mark.parametrize("dispatch", ["fixed", "balanced"])
def test_a_worker_that_hangs_in_a_sync_is_replaced_after_its_deadline(make_pool: MakePool, dispatch: str) -> None:
    pool = make_pool(fault="hang:syncing:2@1", dispatch=dispatch)
    undisturbed = drawn(pool)
    synced(pool, 1)  # in which workers import torch
    started = time.monotonic()
    synced(pool, 2, deadline_s=6.0)
    assert time.monotonic() - started > 6.0 and pool.num_lost == 1
    assert tokens(drawn(pool)) == expected(2, undisturbed)


@pytest.mark.faults
def test_a_worker_that_hangs_while_it_starts_is_replaced_too(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.pool.START_DEADLINE_S", 8.0)
    pool = make_pool(fault="hang:starting:1@1")
    assert len(drawn(pool)) == 6 and pool.num_lost == 1


@pytest.mark.faults
def test_a_worker_that_hangs_in_every_sync_ends_the_run_and_says_why(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(fault="hang:syncing:1@1", always=True, max_restarts=1, min_workers=2)
    monkeypatch.setattr("rollout.pool.START_DEADLINE_S", 20.0)  # a replacement's start ends with a sync
    with pytest.raises(EngineError, match=r"rollout.min_workers is 2; the last one lost, worker 1, did not start within 20 s"):
        synced(pool, 1, deadline_s=20.0)  # the other has to import torch


def test_what_a_worker_leaves_whose_replacements_never_start_is_drawn_by_others(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(max_restarts=2)
    undisturbed = drawn(pool)
    monkeypatch.setenv("GRPO_FAULT", "kill:starting:1@1")
    pool._actor = ray.remote(RolloutWorker).options(**_actor_options("scripted", pool.settings))
    end(pool.slots[1].actor)
    assert tokens(drawn(pool)) == tokens(undisturbed)
    assert pool.num_lost == 3 and pool.num_live == 1


@pytest.mark.parametrize(("dispatch", "polls"), [("fixed", 2), ("balanced", 9)])
def test_weights_that_change_while_a_step_is_drawn_are_named_by_its_samples(make_pool: MakePool, dispatch: str, polls: int) -> None:
    """And a worker is lost meanwhile: with fixed dispatch its replacement draws by the new weights, with balanced whoever draws what is left."""
    pool = make_pool("slow", dispatch=dispatch, max_sequences=2, fault=f"kill:generating:{polls}@1")
    at_rest = tokens(drawn(pool, prompts=PROMPTS * 5))

    def progress(done: int, total: int) -> None:
        if pool.version == 0:
            synced(pool, 1)

    found = pool.sample(PROMPTS * 5, 3, Sampling(8), seed=1, step=0, deadline_s=30, progress=progress)
    assert {completion.version for group in found for completion in group} == {0, 1}
    for group, alike in zip(found, at_rest, strict=True):
        assert [(*completion.tokens[:-1], completion.tokens[-1] - completion.version) for completion in group] == alike


def test_what_progress_raises_ends_the_drawing_and_the_pool_can_draw_again(make_pool: MakePool) -> None:
    pool = make_pool("slow")
    undisturbed = drawn(pool)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.sample(PROMPTS * 5, 3, Sampling(8), seed=1, step=7, deadline_s=30, progress=stop)
    assert tokens(drawn(pool)) == tokens(undisturbed)


def test_a_replacement_serves_only_at_the_version_of_the_others(make_pool: MakePool) -> None:
    pool = make_pool()
    undisturbed = drawn(pool)
    for version in (1, 2):
        synced(pool, version)
    end(pool.slots[1].actor)
    assert tokens(drawn(pool)) == expected(2, undisturbed)
    assert pool.num_lost == 1


def test_workers_may_join_a_running_pool(make_pool: MakePool) -> None:
    pool = make_pool(dispatch="balanced", workers=1)
    undisturbed = drawn(pool)
    synced(pool, 1)
    pool.add_worker()
    assert tokens(drawn(pool)) == expected(1, undisturbed)
    synced(pool, 2)
    assert pool.num_live == 2
    assert tokens(drawn(pool)) == expected(2, undisturbed)


def test_a_request_that_fails_is_tried_again_and_then_an_error(make_pool: MakePool) -> None:
    with pytest.raises(EngineError, match=r"this prompt I will not answer"):
        drawn(make_pool("refuses", max_restarts=1))


def test_ids_outside_the_vocabulary_are_errors_on_both_ways(make_pool: MakePool) -> None:
    with pytest.raises(EngineError, match=r"sample 0\.\d\.\d holds the token id 99999, and the model's vocabulary has \d+"):
        drawn(make_pool("bad_id"))
    with pytest.raises(EngineError, match=r"prompt 'x' holds the token id -1"):
        drawn(make_pool(), prompts=[Prompt("x", (5, -1))])


def test_a_sync_that_is_not_what_was_sent_is_tried_once_more_and_then_named(make_pool: MakePool) -> None:
    pool = make_pool(fault="drop", always=True)
    with pytest.raises(WeightSyncError, match="w was not received"):
        synced(pool, 1)


def test_a_prompt_that_comes_twice_in_a_step_is_answered_in_two_ways(make_pool: MakePool) -> None:
    first, second = drawn(make_pool(), prompts=[PROMPTS[0], PROMPTS[0]])
    assert not {c.tokens for c in first} & {c.tokens for c in second}


def test_a_closed_pool_stops_drawing(make_pool: MakePool) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pool = make_pool("slow", workers=1)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(drawn, pool, 0, 30.0, PROMPTS * 20)
        time.sleep(1.0)
        pool.close()
        with pytest.raises(EngineError):
            future.result(timeout=20)
