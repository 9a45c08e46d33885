"""A reward model of random weights: its scores are the model's own, whatever the batch, and what cannot be scored is None."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewards import RewardError, RewardRuntime, RewardSpec, ScoreInput, check_reward, load_reward
from rewards.models.reward_model import load

QUESTION = "What is 3 + 4?"
COMPLETIONS = ["<think>3+4</think><answer>7</answer>", "<think>hm</think>8", "no thinking", "<think>never closed"]


@pytest.fixture(scope="session")
def judge(make_reward_model: Callable[..., Path]) -> Path:
    return make_reward_model()


def score_alone(folder: Path, text: str, label: int = 0) -> float:
    """One text through the model, by hand."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder)(**ids).logits[0, label].item()


def scores(folder: Path, completions: list[str] = COMPLETIONS, prompt: Any = QUESTION, **settings: Any) -> list[float | None]:
    fn = load_reward("reward_model", model=str(folder), **settings)
    return fn(completions=completions, prompts=[prompt] * len(completions))


def test_scores_are_the_models_own_in_order_whatever_the_batch(judge: Path) -> None:
    seen = ["<answer>7</answer>", "8", "no thinking", ""]
    by_hand = [score_alone(judge, f"[user] {QUESTION}\n[assistant] {text}\n") for text in seen]
    assert len({round(score, 3) for score in by_hand}) == 4
    for batch_size in (1, 3, 8):
        assert scores(judge, batch_size=batch_size) == pytest.approx(by_hand, abs=1e-4)


def test_everything_and_plain_text_where_the_settings_say_so(judge: Path) -> None:
    assert scores(judge, sees="everything") == pytest.approx(
        [score_alone(judge, f"[user] {QUESTION}\n[assistant] {text}\n") for text in COMPLETIONS], abs=1e-4
    )
    assert scores(judge, template="plain")[1] == pytest.approx(score_alone(judge, f"{QUESTION}\n8"), abs=1e-4)


def test_a_conversation_goes_through_the_chat_template(judge: Path) -> None:
    prompt = [{"role": "system", "content": "be kind"}, {"role": "user", "content": QUESTION}]
    (score,) = scores(judge, ["8"], prompt)
    assert score == pytest.approx(score_alone(judge, f"[system] be kind\n[user] {QUESTION}\n[assistant] 8\n"), abs=1e-4)


def test_a_head_with_several_scores_needs_a_label(make_reward_model: Callable[..., Path]) -> None:
    folder = make_reward_model(num_labels=3)
    (problem,) = check_reward("reward_model", {"model": str(folder)})
    assert "gives 3 scores; write label: the number, from 0, of the one that counts" in problem
    assert "label 3: model" in check_reward("reward_model", {"model": str(folder), "label": 3})[0]
    assert scores(folder, ["8"], label=2) == pytest.approx([score_alone(folder, f"[user] {QUESTION}\n[assistant] 8\n", 2)], abs=1e-4)


def test_what_is_not_finite_or_too_long_is_none(make_reward_model: Callable[..., Path], tokenizer) -> None:
    folder = make_reward_model(nan_token=tokenizer("8", add_special_tokens=False)["input_ids"][-1])
    first, second = scores(folder, ["8", "7"])
    assert first is None and second is not None
    long = tokenizer(f"[user] {QUESTION}\n[assistant] 7777\n")["input_ids"]
    assert scores(folder, ["7777", "7"], max_tokens=len(long) - 1) == [None, second]


def test_a_model_that_is_no_judge_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    (problem,) = check_reward("reward_model", {"model": str(tiny_qwen2)})
    assert "is a Qwen2ForCausalLM; a reward model is a ...ForSequenceClassification" in problem
    assert "no config.json" in check_reward("reward_model", {"model": "./nowhere"}, base=tmp_path)[0]
    with pytest.raises(RewardError, match=r"is no reward model: it holds no score\.weight"):
        load(str(tiny_qwen2), "cpu", "auto", None)


def test_no_chat_template_asks_for_plain(make_reward_model: Callable[..., Path]) -> None:
    folder = make_reward_model(chat_template=None)
    with pytest.raises(RewardError, match="no chat template; write template: plain"):
        scores(folder)
    assert None not in scores(folder, template="plain")


def test_loading_does_not_count_into_the_deadline_and_is_done_once_in_one_process(reward_file: Callable[..., Path]) -> None:
    """Of three processes only the one that is its own loads it, for longer than all eight samples may take."""
    folder = reward_file(
        """
        import time
        from pathlib import Path
        from rewards import reward

        def load(log):
            time.sleep(1.5)
            with Path(log).open("a") as file:
                file.write("loaded, ")

        @reward(alone=True, prepare=load)
        def heavy(completions, *, log=""):
            return [float(len(Path(log).read_text()))] * len(completions)
        """
    )
    specs = [RewardSpec("./mine.py:heavy", settings={"log": str(folder / "log")}), RewardSpec("format")]
    inputs = [ScoreInput({"prompt": QUESTION, "completion": text}) for text in 2 * COMPLETIONS]
    with RewardRuntime(specs, base=folder, deadline_s=0.5, processes=2) as runtime:
        for _ in range(2):
            assert [one.parts["heavy"] for one in runtime.score(inputs)] == [len("loaded, ")] * 8


@pytest.mark.slow
def test_in_the_runtime_it_scores_as_by_hand(judge: Path) -> None:
    specs = [RewardSpec("reward_model", settings={"model": str(judge)}, weight=0.5), RewardSpec("format")]
    inputs = [ScoreInput({"prompt": QUESTION, "completion": text}) for text in COMPLETIONS]
    with RewardRuntime(specs, deadline_s=1.0) as runtime:
        scored = runtime.score(inputs)
    expected = scores(judge)
    assert [one.parts["reward_model"] for one in scored] == pytest.approx(expected, abs=1e-4)
    assert scored[0].reward == pytest.approx(0.5 * expected[0] + 1.0, abs=1e-4)


def test_a_model_that_cannot_be_loaded_is_known_before_the_first_sample(reward_file: Callable[..., Path]) -> None:
    folder = reward_file(
        """
        import os
        from rewards import reward

        def load(path):
            if path == "die":
                os._exit(3)
            raise OSError(f"no model in {path}")

        @reward(alone=True, prepare=load)
        def mine(completions, *, path="nowhere"):
            return [1.0] * len(completions)
        """
    )
    with RewardRuntime([RewardSpec("format"), RewardSpec("./mine.py:mine")], base=folder) as runtime:
        with pytest.raises(RewardError, match=r"(?s)reward 'mine' cannot be loaded: Traceback.*OSError: no model in nowhere"):
            runtime.load()
    with RewardRuntime([RewardSpec("./mine.py:mine", settings={"path": "die"})], base=folder) as runtime:
        with pytest.raises(RewardError, match=r"the process of reward 'mine' hangs \(for 120 s\) or dies while loading"):
            runtime.load()
