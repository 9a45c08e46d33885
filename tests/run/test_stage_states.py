"""What a plan takes for done, and what it refuses: results that another recipe made, or whose inputs are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from grpo.config import MadeModel, Tags
from grpo.config.load import LoadedRecipe
from grpo.config.load import load_recipe as load_checked
from grpo.errors import RecipeError
from grpo.plan import make_plan, places
from grpo.resources.tiny_models import tiny_folder
from grpo.run.folder import RunFolder
from grpo.run.origins import origins_of

RECIPE = """
name: small
model: {path: .}
data:
  rows: {jsonl: rows.jsonl}
stages:
  - {name: one, kind: sft, data: rows}
  - {name: two, kind: sft, from: one, data: rows}
  - {name: three, kind: sft, from: base, data: rows}
"""


def load_recipe(path: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe as far as plans read it; its model and its rewards are too small to be loaded."""
    return load_checked(path, overrides, check_inputs=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b", "answer": "b"}\n')
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def finished(recipe: Path, tmp_path: Path) -> RunFolder:
    """A run whose three stages are done."""
    run = RunFolder(tmp_path / "run")
    for planned in make_plan(load_recipe(str(recipe)), run):
        folder = run.stage(planned.number, planned.stage.name)
        (folder / "model").mkdir(parents=True)
        output = (folder / "model").relative_to(run.path).as_posix()
        run.write_record(
            planned.number,
            planned.stage.name,
            {"fingerprint": planned.fingerprint, "identity": dict(planned.identity), "output": output},
        )
    return run


def done(recipe: Path, run: RunFolder, *overrides: str, redo: str | None = None) -> list[bool]:
    return [planned.is_done for planned in make_plan(load_recipe(str(recipe), overrides), run, redo)]


def test_finished_stages_are_done(recipe: Path, finished: RunFolder) -> None:
    assert done(recipe, finished) == [True, True, True]


def test_a_stage_whose_input_is_gone_is_not_done(recipe: Path, finished: RunFolder) -> None:
    (finished.stage(1, "one") / "model").rmdir()
    assert done(recipe, finished) == [False, False, True]  # two was made from one; three was not


def test_a_changed_setting_is_refused_and_named_at_the_first_stage_it_changes(recipe: Path, finished: RunFolder) -> None:
    with pytest.raises(RecipeError, match=r"stage 'two'.*stage\.epochs.*--redo two") as error:
        done(recipe, finished, "stages.two.epochs=3")
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("change", ["template_options={style: 2}", "data.rows.split=train"])
def test_what_changes_prompts_or_rows_is_a_change(recipe: Path, finished: RunFolder, change: str) -> None:
    with pytest.raises(RecipeError, match=rf"stage 'one'.*changed since: {change.partition('=')[0]}"):
        done(recipe, finished, change)


def test_a_run_of_an_earlier_version_is_refused_with_its_renamed_keys(recipe: Path, finished: RunFolder) -> None:
    file = finished.stage(1, "one") / "stage.json"
    record = json.loads(file.read_text())
    for old, new in {"sequences_per_update": "batch_size", "tokens_per_device": "max_tokens_per_micro_batch"}.items():
        record["identity"][f"stage.{old}"] = record["identity"].pop(f"stage.{new}")
    file.write_text(json.dumps({**record, "fingerprint": "of the earlier version"}))
    renamed = "stage.sequences_per_update to stage.batch_size, stage.tokens_per_device to stage.max_tokens_per_micro_batch"
    with pytest.raises(RecipeError, match=rf"stage 'one'.*\(renamed in this version: {renamed}\); .*--redo one"):
        done(recipe, finished)


def test_redo_accepts_the_change_for_the_stages_that_are_made_again(recipe: Path, finished: RunFolder) -> None:
    assert done(recipe, finished, "stages.two.epochs=3", redo="two") == [True, False, False]


def test_redo_of_a_later_stage_is_refused_while_an_earlier_one_does_not_fit(recipe: Path, finished: RunFolder) -> None:
    with pytest.raises(RecipeError, match="--redo one"):
        done(recipe, finished, "stages.one.epochs=3", redo="three")


@pytest.fixture
def half_done(recipe: Path, finished: RunFolder) -> RunFolder:
    """The third stage has a checkpoint and no record."""
    loaded = load_recipe(str(recipe), ["stages.three.epochs=5"])
    third = make_plan(loaded, finished, redo="three")[2]
    folder = finished.stage(3, "three")
    (folder / "stage.json").unlink()
    (folder / "checkpoints" / "step-000004").mkdir(parents=True)
    start = {"fingerprint": third.fingerprint, "identity": dict(third.identity), "places": places(loaded.recipe)}
    finished.write_start(3, "three", start)
    return finished


@pytest.mark.parametrize("epochs", [5, 6])
def test_a_half_done_stage_may_grow(recipe: Path, half_done: RunFolder, epochs: int) -> None:
    assert done(recipe, half_done, f"stages.three.epochs={epochs}") == [True, True, False]


def test_a_half_done_stage_may_not_shrink(recipe: Path, half_done: RunFolder) -> None:
    with pytest.raises(RecipeError, match=r"stage 'three'.*is half done.*stage\.epochs.*--redo three"):
        done(recipe, half_done, "stages.three.epochs=4")


def test_a_half_done_stage_keeps_the_number_of_workers_and_a_finished_one_does_not_care(recipe: Path, half_done: RunFolder) -> None:
    with pytest.raises(
        RecipeError, match=r"half done, with rollout\.workers 1, deterministic True, and the recipe says rollout\.workers 2"
    ):
        done(recipe, half_done, "stages.three.epochs=5", "rollout.workers=2")
    assert done(recipe, half_done, "rollout.workers=2", redo="three") == [True, True, False]


def test_changed_rows_of_a_file_are_a_change(recipe: Path, finished: RunFolder) -> None:
    (recipe.parent / "rows.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')
    with pytest.raises(RecipeError, match=r"files\.rows\.jsonl"):
        done(recipe, finished)


@pytest.fixture
def traced(tmp_path: Path) -> tuple[Path, RunFolder]:
    """An rl stage over a model of two files, with a reward that imports a module beside it and reads a list; and a stage after it: both done."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "mine.py").write_text(
        "from helper import words\n\ndef count(completion: str, *, names: str = '') -> float:\n    return words\n"
    )
    (tmp_path / "helper.py").write_text("words = 1.0\n")
    (tmp_path / "names.txt").write_text("Ada\n")
    recipe = tmp_path / "traced.yaml"
    recipe.write_text(
        RECIPE.partition("stages:")[0].replace("path: .", "path: base")
        + "stages:\n  - {name: one, kind: rl, prompts: rows, steps: 1, rewards: [{use: ./mine.py:count, names: names.txt}]}\n"
        "  - {name: two, kind: sft, from: one, data: rows}\n"
    )
    loaded, run = load_recipe(str(recipe)), RunFolder(tmp_path / "run")
    made = {"base": tmp_path / "base"}
    for planned in make_plan(loaded, run):
        made[planned.stage.name] = run.stage(planned.number, planned.stage.name) / "model"
        made[planned.stage.name].mkdir(parents=True)
        (made[planned.stage.name] / "model.safetensors").write_text(planned.stage.name)
        record = {"fingerprint": planned.fingerprint, "identity": dict(planned.identity)}
        record |= {"origins": origins_of(planned.stage, loaded.recipe, loaded.base, made)}
        run.write_record(
            planned.number, planned.stage.name, {**record, "output": made[planned.stage.name].relative_to(run.path).as_posix()}
        )
    return recipe, run


def test_what_nothing_has_changed_since_is_done_and_so_is_a_copy_of_the_same_bytes(traced: tuple[Path, RunFolder]) -> None:
    recipe, run = traced
    assert done(recipe, run) == [True, True]
    weights = recipe.parent / "base" / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"weights")
    assert done(recipe, run) == [True, True]


def test_weights_that_look_untouched_are_not_read_again(traced: tuple[Path, RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = traced
    loaded, made = load_recipe(str(recipe)), {"base": recipe.parent / "base"}
    first, *_ = make_plan(loaded, run)
    known = origins_of(first.stage, loaded.recipe, loaded.base, made)
    read: list[str] = []
    monkeypatch.setattr("grpo.run.origins._digest", lambda path, *_: read.append(path.name) or "digest")
    assert origins_of(first.stage, loaded.recipe, loaded.base, made, known) == known and done(recipe, run) == [True, True] and read == []
    (recipe.parent / "base" / "model.safetensors").write_bytes(b"WEIGHTS")
    assert origins_of(first.stage, loaded.recipe, loaded.base, made, known)["base"]["model.safetensors"]["xxh3_128"] == "digest"
    assert read == ["model.safetensors"]


@pytest.mark.parametrize(
    ("file", "stage", "told"),
    [
        ("base/model.safetensors", "one", r"model\.safetensors \(base\)"),
        ("base/generation_config.json", "one", r"generation_config\.json \(base\)"),  # was not there
        ("helper.py", "one", r"helper\.py \(imported by \./mine\.py\)"),
        ("names.txt", "one", r"names\.txt"),
        ("run/01-one/model/model.safetensors", "two", r"model\.safetensors \(one\)"),
    ],
)
def test_a_result_is_refused_once_what_it_was_made_from_is_another(
    traced: tuple[Path, RunFolder], file: str, stage: str, told: str
) -> None:
    recipe, run = traced
    (recipe.parent / file).write_bytes(b"WEIGHTS")  # as long as before
    with pytest.raises(RecipeError, match=rf"stage '{stage}' .* changed since: {told}.*--redo {stage}"):
        done(recipe, run)
    assert done(recipe, run, redo=stage)[1] is False


def test_a_finished_run_stays_done_when_its_base_is_gone(traced: tuple[Path, RunFolder]) -> None:
    recipe, run = traced
    shutil.rmtree(recipe.parent / "base")
    assert done(recipe, run) == [True, True]


def test_a_stage_depends_on_the_one_that_measured_its_prompts(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(
        RECIPE.replace("data:\n", "data:\n  hard: {jsonl: rows.jsonl, measured_in: two}\n")
        .replace(
            "kind: sft, from: one, data: rows",
            "kind: reject, from: one, prompts: rows, rewards: [{use: exact}], keep: {min_reward: {exact: 1}}",
        )
        .replace("from: base, data: rows", "data: hard")
    )
    first, second, third = make_plan(load_recipe(str(recipe)), RunFolder(tmp_path / "run"))
    assert third.inputs == ("base", "hard", "two")
    changed = make_plan(load_recipe(str(recipe), ["stages.two.temperature=0.5"]), RunFolder(tmp_path / "run"))
    assert [one.fingerprint == other.fingerprint for one, other in zip((first, second, third), changed, strict=True)] == [
        True,
        False,
        False,
    ]


def test_a_stage_depends_on_the_rows_it_replays(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(
        RECIPE.replace("data:\n", "data:\n  more: {jsonl: rows.jsonl}\n").replace("from: base, data: rows", "from: one, data: more")
    )
    for keys, inputs in (("replay: 0.1, earlier: [two]", ("one", "more", "rows")), ("epochs: 1", ("one", "more"))):
        *_, third = make_plan(load_recipe(str(recipe), [f"stages.three={{{keys}}}"]), RunFolder(tmp_path / "run"))
        assert third.inputs == inputs


def test_a_curriculum_is_told_by_its_phases(recipe: Path, tmp_path: Path) -> None:
    curriculum = "stages.one.curriculum={phases: [{updates: 4, batch_size: 8}, {updates: 9}]}"
    first, *_ = make_plan(load_recipe(str(recipe), [curriculum]), RunFolder(tmp_path / "run"))
    assert first.sizes == "2 phases, in updates of so many sequences: 4 of 8, 9 of 32"


def test_a_made_model_depends_on_the_template_its_corpus_is_written_with() -> None:
    rows = [{"prompt": "Calculate 3 + 4", "expression": "3 + 4"}]
    made = MadeModel(make="tiny_qwen2", problems="sums")
    assert tiny_folder(made, rows, Tags(), str.upper) != tiny_folder(made, rows, Tags(), str.lower)
    assert tiny_folder(made, rows, Tags(), str.upper) == tiny_folder(made, rows, Tags(), str.upper)
