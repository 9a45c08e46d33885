"""A judge, a reward model and a group reward in real stages: the judge begins when its weight does, and rejection asks it too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.conftest import Grpo, rows_of
from tests.rewards.models.stub_judge import serving, shown_to

RECIPE = """
name: judged
model: {{path: {model}}}
template: plain
data:
  sums: {{reasoning_gym: chain_sum, settings: {{min_terms: 2, max_terms: 2}}, question: "{{expression}}", rows: 32}}
rollout: {{engine: scripted, script: ./script.py:answer}}
stages:
  - name: reason
    kind: rl
    prompts: sums
    steps: 4
    updates_per_rollout: 2
    prompts_per_step: 4
    samples_per_prompt: 4
    max_prompt_tokens: 32
    max_completion_tokens: 8
    rewards:
      - {{use: ./mine.py:rank}}
      - {{use: reward_model, model: {reward_model}, template: plain, weight: 0.1}}
      - {{use: judge, base_url: "{url}", model: m, key_env: STUB_KEY, weight: [[3, 0.5], [6, 1.0]]}}
  - name: harvest
    kind: reject
    from: reason
    prompts: sums
    rows: 4
    samples_per_prompt: 4
    max_prompt_tokens: 32
    max_completion_tokens: 8
    rewards: [{{use: judge, base_url: "{url}", model: m, key_env: STUB_KEY}}]
    keep: {{min_reward: {{judge: 0.8}}, language: null, per_prompt: 4}}
"""

MINE = """
from rewards import reward

@reward(scope="group")
def rank(completions, **kwargs):
    assert len(completions) == 4
    return [sorted(completions).index(text) / 4 for text in completions]
"""

SCRIPT = """
def answer(request, version):
    a, end = 64, 260
    return [a + request.seed % 9, a + request.seed // 9 % 9, a + request.seed // 81 % 9, end]
"""


@pytest.mark.slow
def test_a_judged_run(grpo: Grpo, tmp_path: Path, tiny_qwen2: Path, make_reward_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", "sk-very-secret")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "script.py").write_text(SCRIPT)

    def grade(text: str) -> int:
        return sum(map(ord, text)) % 11

    def judge(body: dict, _: int) -> str:
        return f"SCORE: {grade(shown_to(body).split('COMPLETION begins ===')[1].split('===')[0].strip())}"

    with serving(judge) as stub:
        recipe = tmp_path / "judged.yaml"
        recipe.write_text(RECIPE.format(model=tiny_qwen2, reward_model=make_reward_model(), url=stub.url))
        result = grpo("run", recipe, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "from step 1 on: reward 'judge' has weight 0 and is not run" in result.stdout
    assert "from step 3 on: reward 'judge' has weight 0.5" in result.stdout

    steps = rows_of(tmp_path / "run" / "01-reason" / "metrics.jsonl")
    assert [row["reward/judge_weight"] for row in steps] == [0, 0, 0.5, 1]
    assert ["reward/judge" in row for row in steps] == [False, False, True, True]
    samples = rows_of(tmp_path / "run" / "01-reason" / "samples.jsonl")
    for row in samples:
        parts, weight = row["parts"], {1: 0, 2: 0, 3: 0.5, 4: 1.0}[row["step"]]
        assert ("judge" in parts) == (weight > 0)
        judged = weight * grade(row["text"].strip()) / 10 if weight else 0
        assert row["reward"] == pytest.approx(parts["rank"] + 0.1 * parts["reward_model"] + judged)
    kept = rows_of(tmp_path / "run" / "02-harvest" / "data" / "rows.jsonl")
    assert kept and all(grade(row["completion"].strip()) >= 8 for row in kept)
    drawn = rows_of(tmp_path / "run" / "02-harvest" / "samples.jsonl")
    assert {row["dropped"] for row in drawn if grade(row["completion"].strip()) < 8} <= {"below_min_reward", "repetitive"}

    assert set(stub.keys) == {"Bearer sk-very-secret"}
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"very-secret" in path.read_bytes()]
