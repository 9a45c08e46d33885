"""Sums, weights, what None means, what a reward may return, and what the processes hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards import RewardError, RewardRuntime, RewardSpec, ScoreInput

MINE = """
    import sys
    import time
    from rewards import Undecidable, reward

    def returns(completion):
        import numpy
        return {"1": 1, "true": True, "none": None, "f32": numpy.float32(0.5), "np_true": numpy.bool_(True), "array": numpy.array([2.0]),
                "nan": float("nan"), "inf": float("inf"), "str": "1", "list": [1.0]}[completion]

    @reward(undecidable=0.0)
    def wrong_if_undecidable(completion):
        if completion == "?":
            raise Undecidable("who knows")
        return 1.0

    def silent_if_undecidable(completion):
        raise Undecidable("who knows")

    def half(completion, *, value=0.5):
        return value if completion != "skip" else None

    @reward(required=True)
    def always_needed(completion):
        return None

    def raises_on_x(completion):
        if completion == "x":
            raise ValueError("x is not a completion")
        return 1.0

    def loads_torch(completion):
        return float("torch" in sys.modules)

    def sleeps(completion):
        time.sleep(float(completion))
        return 1.0

    def sleeps_once(completions):
        time.sleep(0.08)
        return [1.0] * len(completions)

    @reward(by_model=True)
    def judge(completion, answer):
        return 1.0
"""


@pytest.fixture
def runtime(reward_file: Callable[..., Path]):
    opened: list[RewardRuntime] = []

    def make(*specs: RewardSpec, **settings) -> RewardRuntime:
        opened.append(RewardRuntime(specs, base=reward_file(MINE), **settings))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_reward_is_the_weighted_sum_of_its_parts(runtime, samples) -> None:
    scorer = runtime(
        RewardSpec("math"),
        RewardSpec("format", weight=0.2),
        RewardSpec("./mine.py:half", name="fixed", settings={"value": 3.0}, weight=0.1),
    )
    right, wrong = scorer.score(samples("<think>x</think><answer>7</answer>", "<answer>8</answer>", answer="7"))
    assert right.reward == pytest.approx(1 + 0.2 + 0.3) and right.parts == {"math": 1, "format": 1, "fixed": 3} and right.notes == {}
    assert wrong.reward == pytest.approx(0.3) and wrong.parts == {"math": 0, "format": 0, "fixed": 3}


def test_a_part_that_abstains_leaves_the_others(runtime, samples) -> None:
    scorer = runtime(RewardSpec("./mine.py:half"), RewardSpec("format"))
    (scored,) = scorer.score(samples("skip"))
    assert (scored.reward, scored.parts["half"], scored.notes) == (0, None, {"half": "abstained"})


def test_a_sample_is_dropped_where_a_required_reward_or_all_abstain(runtime, samples) -> None:
    by_itself = runtime(RewardSpec("./mine.py:always_needed"), RewardSpec("format"))
    by_recipe = runtime(RewardSpec("./mine.py:half", required=True), RewardSpec("format"))
    optional = runtime(RewardSpec("./mine.py:always_needed", required=False), RewardSpec("format"))
    alone = runtime(RewardSpec("./mine.py:half"))
    scores = [scorer.score(samples("skip"))[0].reward for scorer in (by_itself, by_recipe, optional, alone)]
    assert scores == [None, None, 0, None]


def test_undecidable_scores_what_the_reward_declares(runtime, samples) -> None:
    scorer = runtime(RewardSpec("./mine.py:wrong_if_undecidable"), RewardSpec("./mine.py:silent_if_undecidable"))
    (scored,) = scorer.score(samples("?"))
    assert scored.parts == {"wrong_if_undecidable": 0, "silent_if_undecidable": None} and scored.reward == 0
    assert scored.notes == {"wrong_if_undecidable": "undecidable", "silent_if_undecidable": "undecidable"}


def test_counts_are_those_since_the_last_reading(runtime, samples) -> None:
    scorer = runtime(RewardSpec("./mine.py:raises_on_x"), RewardSpec("./mine.py:half"))
    scorer.score(samples("x", "skip", "a"))
    assert scorer.counts == {
        "raises_on_x": {"error": 1, "timeout": 0, "undecidable": 0, "abstained": 0},
        "half": {"error": 0, "timeout": 0, "undecidable": 0, "abstained": 1},
    }
    assert not any(scorer.counts["half"].values())


def test_what_may_be_returned_and_what_may_not(runtime, samples) -> None:
    scorer = runtime(RewardSpec("./mine.py:returns"))
    good = scorer.score(samples("1", "true", "f32", "np_true", "array", "none"))
    assert [scored.parts["returns"] for scored in good] == [1, 1, 0.5, 1, 2, None]
    assert all(isinstance(scored.reward, float) for scored in good[:5])
    bad = scorer.score(samples("1", "nan", "inf", "str", "list"))
    assert [scored.reward for scored in bad] == [1, None, None, None, None]
    assert "reward 'returns' returned '1' (str); return a finite number, or None to abstain" in bad[3].notes["returns"]
    assert scorer.counts["returns"]["error"] == 4 and "sample 1" in scorer.first_error["returns"]


def test_a_reward_that_raises_on_some_costs_those_and_shows_one_traceback(runtime, samples) -> None:
    scorer = runtime(RewardSpec("./mine.py:raises_on_x"))
    scored = scorer.score(samples("a", "x", "b", "x"))
    assert [one.reward for one in scored] == [1, None, 1, None]
    assert scored[1].notes == {"raises_on_x": "error: ValueError: x is not a completion"}
    first = scorer.first_error["raises_on_x"]
    assert first.startswith("reward 'raises_on_x', sample 1: Traceback") and "mine.py" in first and "worker.py" not in first


def test_a_reward_that_raises_on_all_stops_the_run(runtime, samples) -> None:
    scorer = runtime(RewardSpec("./mine.py:raises_on_x"), RewardSpec("format"))
    with pytest.raises(RewardError, match=r"(?s)'raises_on_x' failed on all 2 samples.*ValueError: x is not a completion"):
        scorer.score(samples("x", "x"))


def test_a_column_that_no_row_has_is_an_error_and_one_that_some_lack_abstains(runtime) -> None:
    misspelt = ScoreInput({"completion": "<answer>7</answer>", "solution": "7"})
    with pytest.raises(RewardError, match=r"reward 'exact': column 'answer' not found; found .*; did you mean 'solution'\?"):
        runtime(RewardSpec("exact")).score([misspelt])
    scorer = runtime(RewardSpec("exact"), RewardSpec("format"))
    mixed = scorer.score([ScoreInput({"completion": "<answer>7</answer>", "answer": "7"}), ScoreInput({"completion": "hello"})])
    assert [scored.parts["exact"] for scored in mixed] == [1, None]


def test_two_rewards_need_two_names() -> None:
    with pytest.raises(RewardError, match="two rewards are called 'math'"):
        RewardRuntime([RewardSpec("math"), RewardSpec("math", settings={"extract": "boxed"})])


def test_nothing_to_score_starts_nothing(runtime) -> None:
    assert runtime(RewardSpec("format")).score([]) == []


def test_two_processes_score_as_one_does_in_order(runtime, samples) -> None:
    texts = [f"<answer>{n}</answer>" for n in range(300)]
    one, two = (runtime(RewardSpec("exact"), processes=n).score(samples(*texts, answer="123")) for n in (1, 2))
    assert one == two and [index for index, scored in enumerate(one) if scored.reward] == [123]


def test_thousands_of_simple_scores_a_second(runtime, samples) -> None:
    scorer = runtime(RewardSpec("math"), RewardSpec("format"))
    batch = samples(*[f"<think>{n}</think><answer>{n}</answer>" for n in range(1000)], answer="7")
    scorer.score(batch[:1])  # the processes start
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        scorer.score(batch)
        seconds.append(time.perf_counter() - start)
    assert 2 * len(batch) / min(seconds) > 2500  # some 40,000 on a quiet machine


def test_every_thread_gets_its_own_scores(runtime, samples) -> None:
    scorer = runtime(RewardSpec("exact"))
    scores: dict[int, list[float | None]] = {}

    def work(n: int) -> None:
        scores[n] = [scored.reward for scored in scorer.score(samples(*[f"<answer>{k}</answer>" for k in range(4)], answer=str(n)))]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert scores == {n: [float(k == n) for k in range(4)] for n in range(4)}


def test_a_worker_loads_only_what_its_rewards_load(runtime, samples) -> None:
    """Even when the driver has torch: a worker does not import the driver's __main__."""
    assert runtime(RewardSpec("./mine.py:loads_torch")).score(samples("a"))[0].reward == 0


def test_a_reward_that_fails_on_too_large_a_share_stops(runtime, samples) -> None:
    """Two of four fail: a bound of a half allows it, one of 0.4 does not."""
    texts = samples("a", "x", "b", "x")
    allowed = runtime(RewardSpec("./mine.py:raises_on_x", max_error_frac=0.5))
    assert [one.reward for one in allowed.score(texts)] == [1, None, 1, None]
    strict = runtime(RewardSpec("./mine.py:raises_on_x", max_error_frac=0.4))
    with pytest.raises(
        RewardError, match=r"failed on 2 of 4 samples, more than its max_error_frac of 0\.4 allows; the first, sample 1:"
    ) as raised:
        strict.score(texts)
    assert 'raise ValueError("x is not a completion")' in str(raised.value)


def test_undecidable_and_abstained_samples_are_no_failures(runtime, samples) -> None:
    scorer = runtime(
        RewardSpec("./mine.py:silent_if_undecidable", max_error_frac=0.0), RewardSpec("./mine.py:always_needed", max_error_frac=0.0)
    )
    assert [one.notes["always_needed"] for one in scorer.score(samples("a", "b"))] == ["abstained"] * 2


def test_missed_deadlines_count_as_failures(runtime, samples) -> None:
    scorer = runtime(RewardSpec("./mine.py:sleeps", max_error_frac=0.4), deadline_s=0.1)
    with pytest.raises(RewardError, match=r"'sleeps' failed on 1 of 2 samples.*\n*no result within 0\.1 s"):
        scorer.score(samples("0", "5"))


def test_latency_is_that_of_each_sample(runtime, samples) -> None:
    """A sample that sleeps 50 ms takes 50 ms; four in one batch call that sleeps 80 ms take 20 ms each."""
    scorer = runtime(RewardSpec("./mine.py:sleeps"), RewardSpec("./mine.py:sleeps_once"))
    scored = scorer.score(samples("0.05", "0", "0", "0"))
    assert 0.05 <= scored[0].seconds["sleeps"] < 1 and scored[1].seconds["sleeps"] < 0.05
    shares = [one.seconds["sleeps_once"] for one in scored]
    assert len(set(shares)) == 1 and 0.02 <= shares[0] < 0.25
    taken = scorer.seconds
    assert taken["sleeps"] == [one.seconds["sleeps"] for one in scored] and taken["sleeps_once"] == shares
    assert scorer.seconds == {"sleeps": [], "sleeps_once": []}


@pytest.mark.parametrize(
    ("specs", "name"),
    [
        ((RewardSpec("format"), RewardSpec("exact"), RewardSpec("math")), "math"),  # required
        ((RewardSpec("format"), RewardSpec("exact")), "exact"),  # reads a column answer
        ((RewardSpec("./mine.py:judge", required=True), RewardSpec("exact")), "exact"),  # a model's verdict is not the truth
        ((RewardSpec("format"), RewardSpec("./mine.py:judge", required=True)), None),
    ],
)
def test_the_accuracy_reward_is_a_rule_that_is_required_or_reads_the_answer(runtime, specs, name) -> None:
    assert runtime(*specs).accuracy == name
