"""What a plan says a run needs: by hand for known models, refused where it does not fit, and the same keys in --json whatever happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.config.load import load_recipe
from grpo.errors import DataError, RecipeError
from grpo.pipeline.run import checked_recipe, run_recipe
from grpo.plan import plan as whole
from grpo.plan.duration import Costs, Rates, seconds_of_drawing, seconds_of_update, update_quantities
from grpo.plan.measure import fitted
from grpo.plan.memory import StageMemory
from grpo.plan.models import model_findings
from grpo.plan.render import as_json
from grpo.plan.work import Drawing, Lengths, Training, lengths_from
from grpo.trainer.memory_budget import HEAD_BYTES
from grpo.util.shipped_recipes import shipped_recipes

ROOT = Path(__file__).parents[2]
GIB = 2**30
REAL = sorted(set(shipped_recipes()) - {"forgetting_tiny", "r1_tiny", "r1_zero_tiny", "r1_zero_smollm2", "r1_smollm2"})
SIZES = {  # as their authors publish them
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "deepseek-ai/deepseek-math-7b-base": 6_910_365_696,
    "deepseek-ai/deepseek-math-7b-instruct": 6_910_365_696,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,  # pragma: allowlist secret
}
RECIPE = """
name: known
model: {path: Qwen/Qwen2.5-1.5B}
data: {rows: {jsonl: rows.jsonl}}
hardware: {gpus: 2, gpu_memory_gib: 80, memory_gib: 500, cpus: 8, disk_gib: 100}
stages:
  - {name: one, kind: rl, prompts: rows, steps: 2, rewards: [{use: math}],
     max_prompt_tokens: 512, max_completion_tokens: 1536, max_tokens_per_micro_batch: 4096}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n{"prompt": "1 + 2", "answer": "3"}\n')
    path = tmp_path / "known.yaml"
    path.write_text(RECIPE)
    return path


def planned(recipe: Path | str, *overrides: str, out: Path = Path("runs/none")) -> tuple[whole.Outline, whole.Needs]:
    outline = whole.outline(load_recipe(str(recipe), overrides), out)
    return outline, whole.needs(outline)


def memory(recipe: Path | str, *overrides: str) -> StageMemory:
    return planned(recipe, *overrides)[1].memory["one"]


def held(of_stage: StageMemory, who: str) -> dict[str, int]:
    return dict(next(holding for holding in of_stage.holdings if holding.who == who).parts)


@pytest.mark.parametrize("ref", SIZES)
def test_shipped_shapes_have_as_many_parameters_as_the_model(ref: str) -> None:
    from grpo.plan.architecture import architecture_of

    assert architecture_of(ref, Path(".")).parameters == SIZES[ref]


def test_a_rank_of_qwen_1_5b_by_hand(recipe: Path) -> None:
    # 1,543,714,304 weights: 4 bytes each for masters, 2 for autocast's copy; 4 for the reference, 4 for gradients, 8 for AdamW's moments.
    # 28 layers of width 1536, 12 heads and 2 of keys of 128, 8960 wide inside: 29 x (30 x 1536 + 14 x (1536 + 256) + 9 x 8960) bytes a token.
    n = SIZES["Qwen/Qwen2.5-1.5B"]
    per_token = 29 * (30 * 1536 + 14 * (1536 + 256) + 9 * 8960)
    assert held(memory(recipe), "trainer rank") == {
        "weights": 6 * n,
        "reference": 4 * n,
        "gradients": 4 * n,
        "optimizer": 8 * n,
        "activations": 4096 * per_token + HEAD_BYTES,
    }


def test_keys_and_values_by_hand(recipe: Path) -> None:
    # Keys and values of 28 layers with 2 heads of 128, two bytes each: 28,672 bytes a token. The engine has its own GPU: 0.9 of 80 GiB.
    found = memory(recipe)
    parts = held(found, "engine")
    assert parts == {"weights": 2 * SIZES["Qwen/Qwen2.5-1.5B"], "kv_cache": parts["kv_cache"], "process": GIB}
    assert sum(parts.values()) == int(0.9 * 80 * GIB)
    sequences = parts["kv_cache"] / (28_672 * 2048)
    assert f"{sequences:,.0f} sequences of 2,048 tokens" in found.holdings[0].remark


def test_sharding_and_adapters_take_less(recipe: Path) -> None:
    n = SIZES["Qwen/Qwen2.5-1.5B"]
    shared = held(memory(recipe, "trainer.ranks=4", "trainer.shard=parameters", "hardware.gpus=8"), "trainer rank")
    assert (shared["optimizer"], shared["gradients"], shared["weights"]) == (8 * n // 4, n, n + 2 * 2 * n // 28)
    adapted = memory(recipe, "stages.one.lora={rank: 8, targets: [q_proj]}")
    parts = held(adapted, "trainer rank")
    assert adapted.trained == 28 * 8 * (1536 + 1536)  # A and B of q_proj in each layer
    # The layers' matrices: q and o 1536 x 1536, k and v 1536 x 256, three of 1536 x 8960; frozen, so 2 bytes each and no copy. While an adapter is
    # folded into the largest of them, 6 bytes of each of its weights.
    matrices = 28 * (2 * 1536**2 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    folding = 6 * 1536 * 8960
    assert parts["weights"] == 4 * (n + adapted.trained) - 2 * matrices + 2 * (n + adapted.trained - matrices) + folding
    assert parts["reference"] == 0


def test_what_does_not_fit_is_refused_with_stage_device_numbers_and_three_changes(recipe: Path) -> None:
    (problem,) = memory(recipe, "hardware.gpu_memory_gib=40").problems
    assert problem.startswith("stage 'one' does not fit: a GPU holds ")
    for words in ("one trainer rank", "optimizer 11.5", "39.0 are available", "(1) ", "(2) ", "(3) "):
        assert words in problem, problem
    assert "(4)" not in problem


def test_what_the_refusal_advises_first_helps(recipe: Path) -> None:
    (problem,) = memory(recipe, "hardware.gpu_memory_gib=40").problems
    advised = problem.partition("(1) ")[2].partition(":")[0]
    changes = {
        "gradient_checkpointing": ["stages.one.gradient_checkpointing=true"],
        "lora": ["stages.one.lora={rank: 16}"],
        "trainer.offload_optimizer": ["trainer.offload_optimizer=true"],
        "max_completion_tokens": ["stages.one.max_completion_tokens=384", "stages.one.max_tokens_per_micro_batch=896"],
    }
    assert memory(recipe, "hardware.gpu_memory_gib=40", *changes[advised]).problems == ()


def test_a_context_longer_than_the_model_has_is_refused(recipe: Path) -> None:
    changes = ["model.path=Qwen/Qwen2.5-Math-1.5B", "stages.one.max_completion_tokens=8192", "stages.one.max_tokens_per_micro_batch=9000"]
    loaded = load_recipe(str(recipe), changes)
    (finding,) = model_findings(loaded.recipe, loaded.base)
    assert "8,704 tokens, and Qwen/Qwen2.5-Math-1.5B has 4,096 positions" in finding.text and finding.keys == ("stages", 0)


def test_a_rope_type_that_follows_the_longest_sequence_is_refused_beyond_its_context(recipe: Path, tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert memory(recipe, f"model.path={tmp_path}").problems == ()  # 512 + 1,536 = 2,048
    problems = memory(recipe, f"model.path={tmp_path}", "stages.one.max_prompt_tokens=513").problems
    assert any(
        p.startswith("stage 'one': rope type 'dynamic' is supported up to 2,048 tokens, and sequences may have 2,049;") for p in problems
    )


def test_a_scripted_engine_holds_no_model(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def answer(request, version):\n    return [1]\n")
    found = memory(recipe, f"rollout={{engine: scripted, script: {tmp_path}/script.py:answer}}", "hardware={gpus: 0, memory_gib: 60}")
    (rank,) = found.holdings
    assert (rank.who, rank.where) == ("trainer rank", "machine") and rank.available == int((60 - 2.5 - 1) * GIB)


def test_a_full_disk_is_foreseen(recipe: Path) -> None:
    # 1,543,714,304 parameters: 2 bytes each for the model, and 4 checkpoints of 12, which are gone at the end: 2.9 + 69.0
    _, needed = planned(recipe, "hardware.disk_gib=1")
    assert [problem for problem in needed.problems if "they take 71.9 GiB" in problem and "1.0 are free" in problem]


def test_unknown_shapes_are_said_to_be_unknown(recipe: Path) -> None:
    outline, needed = planned(recipe, "model.path=nobody/nothing")
    assert needed.memory == {} and any("nobody/nothing" in text for text in needed.unknown) and needed.problems == ()
    assert as_json(outline, needed)["stages"][0]["memory"] is None


def test_rows_that_are_here_are_counted_with_why_others_are_left_out(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held.jsonl").write_text('{"prompt": "1 + 2", "answer": "3"}\n')
    changes = ["data.held={jsonl: ./held.jsonl}", "data.rows.disjoint_from=[held]", "data.far={hub: nobody/rows}"]
    monkeypatch.chdir(tmp_path)
    outline = whole.outline(load_recipe(str(recipe), changes), tmp_path / "run")
    found = {rows.source: (rows.rows, dict(rows.dropped)) for rows in outline.rows}
    assert found == {"rows": (1, {"held_out": 1}), "held": (1, {}), "far": (None, {})}


def test_the_prompt_is_shown_with_its_special_tokens(recipe: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}\n<|end|>")
    outline = whole.outline(load_recipe(str(recipe), [f"model.path={tiny_qwen2}", f"template={tmp_path / 't.jinja'}"]), tmp_path / "run")
    (prompt,) = outline.prompts
    assert prompt.text == "1 + 1\\n<|end|>" and prompt.num_tokens == 7  # five characters, a line break, and the end as one token


def test_rows_and_problems_over_a_limit_are_counted_for_every_stage_that_leaves_them_out(
    recipe: Path, tiny_qwen2: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "q", "completion": "c" * length} for length in (3, 9, 300)] + [{"prompt": "q", "completion": "c<|end|>"}]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"prompt": "h" * length, "answer": "1"}) + "\n" for length in (9, 90, 250)))
    recipe.write_text(
        f"""
name: known
model: {{path: {tiny_qwen2}}}
template: plain
data: {{rows: {{jsonl: sft.jsonl}}, held: {{jsonl: held.jsonl}}}}
evaluation: {{prompts: held, max_completion_tokens: 16}}
stages:
  - {{name: short, kind: sft, data: rows, max_tokens: 10}}
  - {{name: long, kind: sft, from: short, data: rows, max_tokens: 100}}
"""
    )
    found, held = whole.outline(load_recipe(str(recipe)), tmp_path / "run").rows
    assert (found.rows, dict(found.dropped)) == (2, {"over max_tokens 10": 2, "over max_tokens 100": 1})
    assert found.note == "1 completion ended with the end token that is appended anyway; it is learned with one"
    assert (held.rows, dict(held.dropped)) == (2, {"over evaluation.max_prompt_tokens 240": 1})  # of 256 positions
    narrow = load_recipe(str(recipe), ["evaluation.max_prompt_tokens=20"])
    assert dict(whole.outline(narrow, tmp_path / "run").rows[1].dropped) == {"over evaluation.max_prompt_tokens 20": 2}
    for change, said in (
        (
            "stages.short.max_tokens=2",
            "data source 'rows': none of 4 rows fits max_tokens = 2 of stage 'short'\n  they have 3 to 302 tokens",
        ),
        ("evaluation.max_prompt_tokens=2", "data source 'held': none of 3 prompts fits evaluation.max_prompt_tokens = 2 of stage 'short'"),
        (
            "stages.long.max_tokens=400",
            "data source 'rows', stage 'long': 1 of 4 rows are longer than the model's 256 positions, the longest has 302 tokens\n"
            "  set max_tokens: 256, which leaves them out",
        ),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            whole.outline(load_recipe(str(recipe), [change]), tmp_path / "run")
        with pytest.raises(DataError, match=re.escape(said)):  # and not once the first stage is trained
            run_recipe(str(recipe), [change], tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_folder_of_a_config_alone_can_be_planned_with_and_not_run(recipe: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny_qwen2 / "config.json", tmp_path / "bare")
    change = [f"model.path={tmp_path / 'bare'}", "stages.one.max_prompt_tokens=64", "stages.one.max_completion_tokens=64"]
    assert checked_recipe(str(recipe), change, needs_weights=False)
    with pytest.raises(RecipeError) as raised:
        checked_recipe(str(recipe), change)
    (no_weights, no_tokenizer) = raised.value.problems
    assert "holds no *.safetensors" in no_weights and "there is no tokenizer" in no_tokenizer


def test_the_prompt_begins_with_what_the_tokenizer_puts_first(recipe: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_qwen2, tmp_path / "bos")
    saved = json.loads((tmp_path / "bos" / "tokenizer.json").read_text())
    number = next(token["id"] for token in saved["added_tokens"] if token["content"] == "<|pad|>")
    sequence = [{"SpecialToken": {"id": "<|pad|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|pad|>": {"id": "<|pad|>", "ids": [number], "tokens": ["<|pad|>"]}}
    saved["post_processor"] = {"type": "TemplateProcessing", "single": sequence, "pair": sequence, "special_tokens": special}
    (tmp_path / "bos" / "tokenizer.json").write_text(json.dumps(saved))
    (prompt,) = whole.outline(load_recipe(str(recipe), [f"model.path={tmp_path / 'bos'}", "template=plain"]), tmp_path / "run").prompts
    assert (prompt.text, prompt.num_tokens) == ("<|pad|>1 + 1", 6)


def test_changes_are_told_against_the_shipped_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: r1_zero_tiny\nname: mine\nstages: [{name: reason, steps: 17}]\n")
    outline = whole.outline(load_recipe(str(path), ["stages.reason.kl_coef=0.5"]), tmp_path)
    assert outline.changes is not None and outline.changes.of == "r1_zero_tiny"
    assert set(outline.changes.settings) == {
        ("name", "r1-zero-tiny", "mine"),
        ("stages.reason.steps", 100, 17),
        ("stages.reason.kl_coef", None, 0.5),
    }
    assert whole.outline(load_recipe("r1_zero_tiny"), tmp_path).changes is None


def test_sizes_are_in_words() -> None:
    outline = whole.outline(load_recipe("r1_zero_qwen2.5_1.5b"), Path("runs/none"))
    assert "512 prompts x 16 samples = 8,192 sequences = 16 updates of 512" in outline.stages[0].sizes


# --- Time -----------------------------------------------------------------------------------------


def test_an_update_by_hand(recipe: Path) -> None:
    outline, _ = planned(recipe)
    model = outline.architectures["one"]
    n, head = SIZES["Qwen/Qwen2.5-1.5B"], 151_936 * 1536
    # 4 prompts of 100 tokens with 8 completions of 50: 2,000 tokens, 1,600 of them completions. Each token of a prompt sees 50 others on
    # average, each of a completion 100 + 25; 4 x 1536 operations a layer for each pair. Forwards, backwards and the reference: 4 passes.
    work = Training(updates=1, prompts=4, samples_per_prompt=8, prompt=100, completion=50, forwards=4, model=model)
    seen = 4 * (100 * 50 + 8 * 50 * 125)
    assert work.flops == pytest.approx(4 * (2 * ((n - head) * 2000 + head * 1600) + 4 * 1536 * 28 * seen))
    stated = seconds_of_update(work, 1000, n, outline.recipe, Rates(1e12, 1e11))
    assert stated == pytest.approx(work.flops / 1e12 + 28 * n / 1e11)
    costs = {"products": 1e-12, "attention": 2e-12, "activation_bytes": 1e-11, "tokens": 1e-5, "prompt_layers": 0.001, "pass_layers": 0.01}
    # what a token leaves behind, in one layer more than there are: 30 x 1536 + 14 x (1536 + 256) + 9 x 8960 bytes
    activations = 29 * (30 * 1536 + 14 * (1536 + 256) + 9 * 8960)
    assert update_quantities(work, 2)["activation_bytes"] == 4 * 2000 * activations
    measured = seconds_of_update(work, 1000, n, outline.recipe, Costs(costs, {}, 1e11))  # 2,000 tokens are two passes
    by_token = 4 * 2000 * (activations * 1e-11 + 1e-5)
    assert measured == pytest.approx(
        work.products * 1e-12 + work.attention * 2e-12 + by_token + 4 * 28 * (4 * 0.001 + 2 * 0.01) + 28 * n / 1e11
    )


def test_a_draw_by_hand(recipe: Path) -> None:
    outline, _ = planned(recipe, "rollout.max_sequences=64", "rollout.workers=2")
    n = SIZES["Qwen/Qwen2.5-1.5B"]
    # 256 sequences over two workers, 64 at a time: two waves of 100 token steps. 256 x 80 / 2 tokens each worker.
    drawn = Drawing("rollout", 1, 256, 16, prompt=40, completion=80, longest=100, model=outline.architectures["one"])
    prefill = 2 * n * 40 * 8 / 1e12
    costs = {"steps": 0.01, "step_layers": 0.001, "tokens": 1e-4, "token_layers": 1e-5, "token_parameters": 1e-12, "seen_bytes": 1e-11}
    seconds = 200 * (0.01 + 28 * 0.001) + 10240 * 1e-4 + (10240 + 40 * 8) * (28 * 1e-5 + n * 1e-12) + 10240 * 28_672 * 80 * 1e-11
    assert seconds_of_drawing(drawn, outline.recipe, Costs({}, costs, 1e11)) == pytest.approx(seconds)
    per_token = 2 * n / 1e12 + 28_672 * (40 + 40) / 1e11
    assert seconds_of_drawing(drawn, outline.recipe, Rates(1e12, 1e11)) == pytest.approx(200 * 2 * n / 1e11 + 10240 * per_token + prefill)


def test_costs_are_fitted_to_what_was_timed() -> None:
    """3 s a step and 2 s a token, found again from three of their sums; a third quantity that costs nothing is not made to cost less."""
    timed = [({"steps": s, "tokens": t, "layers": n}, 3.0 * s + 2.0 * t) for s, t, n in ((1, 10, 4), (2, 5, 4), (4, 40, 2), (1, 1, 1))]
    assert fitted(timed) == pytest.approx({"steps": 3.0, "tokens": 2.0, "layers": 0.0}, abs=1e-6)
    falling = [({"steps": 1.0, "layers": n}, 5.0 - n) for n in (1.0, 2.0, 3.0)]
    assert fitted(falling)["layers"] == 0.0 and 2.0 < fitted(falling)["steps"] < 4.0


def test_times_need_rates_and_rows(recipe: Path) -> None:
    _, needed = planned(recipe)
    assert needed.seconds == {} and any(text.startswith("time: state hardware.tflops") for text in needed.unknown)
    outline, needed = planned(recipe, "hardware.tflops=100", "hardware.bandwidth_gb_s=1000")
    assert needed.seconds["one"].drawing > 0 and needed.seconds["one"].training > 0
    shorter = whole.needs(outline, lengths_from("100/200"))
    assert shorter.seconds["one"].total < needed.seconds["one"].total


def test_lengths_that_are_none_are_refused() -> None:
    assert lengths_from(None) == Lengths() and lengths_from("48/36") == Lengths(48, 36)
    with pytest.raises(RecipeError, match="--lengths 48: expected mean tokens"):
        lengths_from("48")


# --- As a command ---------------------------------------------------------------------------------


def grpo(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """With a limit on memory that no model of such sizes would stay under: 70 billion weights are 141 GB."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({6 * GIB}, {6 * GIB})); from grpo.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", limited, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_seventy_billion_parameters_are_planned_in_seconds_and_refused_with_exit_2(recipe: Path, tmp_path: Path) -> None:
    ran = grpo("plan", str(recipe), "model.path=meta-llama/Llama-3.3-70B-Instruct", "--json", cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    told = json.loads(ran.stdout)
    assert told["fits"] is False and told["stages"][0]["parameters"] == SIZES["meta-llama/Llama-3.3-70B-Instruct"]
    assert "Traceback" not in ran.stderr and "stage 'one' does not fit: a GPU holds" in ran.stderr


def test_a_plan_says_which_gold_answers_no_sample_can_match_and_refuses_rewards_that_know_none(recipe: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} + {n}", "answer": None if n == 13 else str(2 * n)} for n in range(40)]
    (recipe.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = grpo("plan", str(recipe), "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)["gold_answers"]
    (unreadable,) = told["unreadable"]
    assert told["problems"] == [] and (unreadable["num"], unreadable["num_rows"], unreadable["sources"]) == (1, 40, {"rows": 1})
    ran = grpo("plan", str(recipe), "data.rows.columns={answer: prompt}", "stages.one.rewards=[{use: exact}, {use: choice}]", cwd=tmp_path)
    assert ran.returncode == 2 and "the rewards cannot be trusted with these rows" in ran.stderr, ran.stderr


def test_a_quick_plan_loads_no_torch_and_tells_the_same_keys(recipe: Path, tmp_path: Path) -> None:
    outline, needed = planned(recipe)
    full, quick = as_json(outline, needed), as_json(outline, None)
    assert full.keys() == quick.keys() and full["stages"][0].keys() == quick["stages"][0].keys()
    code = "import sys; from grpo.config.load import load_recipe; from grpo.plan import plan as whole; from pathlib import Path\n"
    code += f"whole.outline(load_recipe({str(recipe)!r}), Path('x')); print([m for m in ('torch', 'ray', 'vllm') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_the_json_keeps_its_keys(recipe: Path) -> None:
    told: dict[str, Any] = json.loads(json.dumps(as_json(*planned(recipe, "hardware.tflops=1", "hardware.bandwidth_gb_s=1"))))
    top = {
        "recipe",
        "out",
        "changes",
        "hardware",
        "stages",
        "rows",
        "prompts",
        "contacts",
        "rates",
        "unknown",
        "problems",
        "fits",
        "gold_answers",
    }
    assert top <= told.keys()
    stage = {"stage", "kind", "from", "inputs", "makes", "sizes", "done", "model", "parameters", "trained_parameters", "tokens_per_pass"}
    assert stage | {"memory", "disk", "seconds"} <= told["stages"][0].keys()
    assert {"who", "where", "parts", "available", "needed", "fits"} <= told["stages"][0]["memory"][0].keys()
    assert {"drawing", "evaluation", "training", "total"} <= told["stages"][0]["seconds"].keys()


@pytest.mark.parametrize("name", REAL)
def test_shipped_recipes_fit_the_hardware_that_they_name(name: str) -> None:
    outline, needed = planned(name)
    assert needed.problems == () and set(needed.memory) == set(needed.seconds) == {stage.name for stage in outline.recipe.stages}


def test_one_gpu_of_24_gb_cannot_hold_a_7b_model_twice_and_needs_not_by_turns() -> None:
    _, needed = planned("grpo_lora_qwen2.5_7b", "rollout.sleep=false")
    assert len(needed.problems) == 2 and "one engine" in needed.problems[0] and "one trainer rank" in needed.problems[1]
    assert planned("grpo_lora_qwen2.5_7b")[1].problems == ()


def test_one_gpu_by_turns_holds_the_larger_of_engine_and_trainer_and_main_memory_the_other(recipe: Path) -> None:
    n, alone = SIZES["Qwen/Qwen2.5-1.5B"], "hardware={gpus: 1, gpu_memory_gib: 60, memory_gib: 500}"
    together, by_turns = memory(recipe, alone), memory(recipe, alone, "rollout.sleep=true")
    assert [holding.available for holding in together.holdings[:2]] == [int(0.45 * 60 * GIB), int(0.5 * 60 * GIB) - GIB]
    # Of 60 GiB an engine takes nine tenths; a rank has all but what the two processes take beside their models, 1 GiB each.
    assert [holding.available for holding in by_turns.holdings[:2]] == [int(0.9 * 60 * GIB), 58 * GIB]
    assert len(together.problems) == 1 and by_turns.problems == ()
    # In a sync: masters, reference, moments; two bytes each for what was exported, for the engine's copy of it, and for where the engine slept. When
    # a trainer is made: the model in float32, as it is read, beside the engine's.
    driver, syncing = (
        5 * GIB // 2,
        {"trainer_asleep": 16 * n, "exported_weights": 2 * n, "unpacked_weights": 2 * n, "engines_asleep": 2 * n},
    )
    assert held(by_turns, "node, in a sync") == {**syncing, "driver": driver}
    offloaded = memory(recipe, alone, "rollout.sleep=true", "trainer.offload_optimizer=true")
    assert held(offloaded, "node, in a sync")["trainer_asleep"] == 16 * n  # the moments lie there anyway
    assert held(by_turns, "trainer ranks of a node") == {"models_as_read": 4 * n, "driver": driver, "engines_asleep": 2 * n}
    several = memory(recipe, "hardware={gpus: 2, gpu_memory_gib: 60, memory_gib: 500}", "rollout.sleep=true")
    assert several.holdings[0].available == int(0.9 * 60 * GIB) and several.holdings[1].available == 59 * GIB  # a GPU each: nobody sleeps


def test_taking_turns_is_advised_where_one_gpu_is_too_small_for_both_and_could(recipe: Path) -> None:
    small = "hardware={gpus: 1, gpu_memory_gib: 60, memory_gib: 500}"
    (problem,) = memory(recipe, small).problems
    assert "rollout.sleep: true: " in problem
    (problem,) = memory(recipe, small, "rollout.max_staleness=1").problems
    assert "sleep" not in problem
    engine, _ = planned("grpo_lora_qwen2.5_7b", "rollout.sleep=false")[1].problems
    assert "one engine" in engine and "(1) rollout.sleep: true" in engine
