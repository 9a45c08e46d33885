"""Which keys may a recipe have, and what does each mean? For editors as a JSON schema, for people as a page.

The schema in ``config`` says it all; its descriptions also end error messages, so what would only lengthen those stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from grpo.config import Recipe
from grpo.config.check_schema import describe

JsonSchema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
STAGES = ("SftStage", "RlStage", "RejectStage", "DistillStage", "EvalStage")
STAGE_KEYS_FIRST = ("name", "kind", "from", "seed")
CHANGE = "Change"  # what follows a definition's name where it only changes the recipe that is extended
NULL: JsonSchema = {"type": "null"}
EXTENDS: JsonSchema = {
    "type": "string",
    "description": "another recipe (a file, or the name of a shipped one) that this one changes; null takes a key away",
}

# By key, and by model and key where a key has two meanings.
MEANINGS = {
    "accuracy": "the reward that says whether an answer is right",
    "adam_beta1": "Adam's decay of the mean gradient",
    "adam_beta2": "Adam's decay of the mean squared gradient",
    "algorithm": "a row of the table of variants (docs/algorithms.md), or ./file.py:name",
    "answer": "the tag around the answer",
    "by": "the column that says how hard a prompt is",
    "checkpoint_every": "updates between checkpoints; null keeps only those of a run that is stopped",
    "clip_high": "the ratio is clipped above 1 + this; the algorithm's own by default",
    "clip_low": "the ratio is clipped below 1 - this; the algorithm's own by default",
    "csv": "a file with a header; relative to the recipe",
    "curriculum": "easy prompts first: which ones are in play at which step",
    "data": "data sources and datasets of earlier stages, whose rows have prompt and completion",
    "description": "one line for lists and reports",
    "dtype": "of the engines' weights and arithmetic",
    "dynamic_sampling": "replace groups whose rewards give no advantage by groups of fresh prompts",
    "easiest_frac": "share of all prompts, the easiest, that are drawn from",
    "epochs": "how often each row is seen",
    "eval_every": "measure on the held-out set every so many steps",
    "evaluation": "the held-out set and how models are measured on it",
    "filters": "rows that are left out, each counted under its reason",
    "from": "the model to start from: base, or a stage that makes one",
    "heads": "attention heads; hidden_size must be a multiple",
    "hidden_size": "width of the model",
    "importance_cap": "the largest weight that this correction gives a token",
    "jsonl": "a file with an object a line; relative to the recipe",
    "keep": "which completions survive",
    "kind": "sft, rl, reject, distill or eval",
    "kl_in": "where the divergence from the reference counts; the algorithm's own by default",
    "kv_cache_gib": "memory for keys and values of one engine on a CPU",
    "layers": "depth of the model",
    "learning_rate": "the highest, reached after warm-up",
    "lenient": "the reward that judges an answer whatever its form",
    "lora": "train low-rank adapters instead of all weights",
    "lr_schedule": "how the learning rate falls after warm-up: to min_learning_rate on the last update, or to 0 just after it",
    "make": "the architecture",
    "max_completion_tokens": "a completion is cut off after so many tokens",
    "max_grad_norm": "a longer gradient is scaled down to this norm",
    "max_pass_rate": "greatest measured share of right samples",
    "max_prompt_tokens": "longer prompts are left out and counted",
    "max_sequences": "completions that one engine draws at a time",
    "min_language_share": "of the words of the thinking",
    "min_learning_rate": "what linear and cosine end at; with 0 the last update still learns, as in transformers",
    "min_p": "leaves out tokens less likely than this share of the likeliest one's probability",
    "mix": "rows of other sources, added to what was kept",
    "model": "the base model: a folder, a hub id, or one made on the spot",
    "name": "how other stages, folders and the command line call it",
    "nodes": "machines alike",
    "parquet": "a file; relative to the recipe",
    "pass_at": "report pass@k for these k",
    "path": "a folder or a hub id",
    "per_prompt": "at most so many of each prompt",
    "phases": "from which step on how many of the prompts are in play",
    "pretrain_learning_rate": "of the making",
    "pretrain_seed": "of the corpus",
    "pretrain_updates": "how long the making trains; 0 leaves random weights",
    "prompts": "the data sources whose prompts are drawn",
    "prompts_per_step": "groups of one rollout",
    "rank": "of the two factors of an adapter",
    "reward_deadline_s": "what one reward may take for one sample",
    "rewards": "what is judged, and what each counts",
    "rollout": "the engines that draw completions",
    "rows": "at most so many",
    "samples_per_prompt": "completions drawn of each prompt",
    "seed": "everything random follows from it",
    "batch_size": "rows of one optimizer step",
    "stages": "what is done, in order",
    "steps": "rollouts, each followed by its updates",
    "stop": "texts that end a completion",
    "tags": "names of the tags around thinking and answer",
    "teacher": "the stage or model that writes the completions to learn from; leave it out to learn from data",
    "temperature": "of sampling",
    "think": "the tag around the thinking",
    "top_k": "sample from so many most likely tokens; 0 for all",
    "top_p": "sample from the fewest tokens that hold this much probability",
    "trainer": "the policy trainer's processes",
    "updates_per_rollout": "optimizer steps that share one rollout's groups",
    "use": "a data source or a dataset",
    "warmup_updates": "the learning rate rises from 0 over so many updates",
    "weight": "what the reward counts in the sum",
    "weight_decay": "of matrices; norms and biases have none",
    "well_formed": "the reward that judges the form; null: any form will do",
    "workers": "engines, each in a process of its own",
}
MEANINGS_OF_MODELS = {
    "DataSource": {"seed": "of generated rows"},
    "DistillStage": {"from": "the student: base, a stage, a path, or a model made on the spot"},
    "Evaluation": {
        "prompts": "the data source with the held-out problems",
        "temperature": "of sampling; 0 is greedy",
        "seed": "of sampling",
    },
    "Keep": {"max_completion_tokens": "longer completions are dropped"},
    "MadeModel": {"seed": "of the initial weights"},
    "Recipe": {"data": "named sources of rows", "name": "of the run; its folder is runs/<name> by default"},
    "Weighted": {"weight": "the source's part of the rows, in proportion to the other sources' weights"},
}


def recipe_json_schema() -> JsonSchema:
    """The JSON schema of a recipe's file, every key with its meaning.

    A file that extends another needs nothing but what it changes, and null in it takes a key away.
    """
    recipe = Recipe.model_json_schema(by_alias=True)
    definitions: JsonSchema = {**recipe.pop("$defs"), "Recipe": recipe}
    for name, definition in definitions.items():
        definition.pop("title", None)
        for key, item in definition.get("properties", {}).items():
            item.pop("title", None)
            item["description"] = item.get("description") or meaning_of(name, key)
    changes = {name + CHANGE: _change(definition) for name, definition in definitions.items() if name not in STAGES}
    stage = _change({"type": "object", "properties": _any_of_the_kinds(definitions), "additionalProperties": False})
    changes["Stage" + CHANGE] = {**stage, "required": ["name"]}
    extending = changes["Recipe" + CHANGE]
    extending["properties"] = {
        "extends": EXTENDS,
        **extending["properties"],
        "stages": {"type": "array", "items": _ref("Stage" + CHANGE), "description": meaning_of("Recipe", "stages")},
    }
    return {
        "$schema": DIALECT,
        "title": "grpo-toolkit recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": _ref("Recipe" + CHANGE),
        "else": _ref("Recipe"),
        "$defs": {**definitions, **changes},
    }


def meaning_of(model: str, key: str, described: str | None = None) -> str:
    """What a key means, in one phrase; "" where nobody has said it yet."""
    return described or MEANINGS_OF_MODELS.get(model, {}).get(key) or MEANINGS.get(key, "")


def keys_page() -> str:
    """docs/recipe-keys.md: a table for each part of a recipe, the stages' keys in one."""
    parts = list(_models(Recipe))
    stages = [model for model in parts if model.__name__ in STAGES]
    sections = [_section(model) for model in parts if model not in stages]
    return "\n".join([PAGE_HEAD, *sections[:1], _stages_section(stages), *sections[1:]])


PAGE_HEAD = """\
# Every key of a recipe

Made by `python scripts/write_recipe_keys.py` from [grpo/config/schema.py](../grpo/config/schema.py); a test holds it up to date. `grpo schema` prints the same
for editors ([commands.md](commands.md#grpo-schema)). A key without a default must be written.

## Extending a recipe

    extends: r1_tiny                                 # a shipped recipe, or a file
    name: mine
    data: {sums: {rows: 2000}}
    stages:
      - {name: reason, steps: 20}
      - {name: harvest, kind: null}

Mappings are merged key by key; a list replaces the list, except `stages`, which are merged by name. `null` takes a key away, and
`{name: ..., kind: null}` a stage. A stage, a model or a source of another kind replaces the whole of the old one. A path belongs to the file that it
stands in. What a command line says (`stages.reason.steps=20`, quoted where it holds brackets) comes last. `grpo plan` begins with what differs.
"""


def _section(model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split())
    rows = [f"| `{key}` | {_type(field)} | {_default(field)} | {_cell(_meaning(model, key, field))} |" for key, field in _fields(model)]
    return "\n".join([f"## {_heading(model)}", "", about, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _stages_section(stages: list[type[BaseModel]]) -> str:
    """One row for a key of the same type, default and meaning, with the kinds that have it."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for model in stages:
        for key, field in _fields(model):
            row = (key, "its kind" if key == "kind" else _type(field), _default(field), _cell(_meaning(model, key, field)))
            kinds.setdefault(row, []).append(_kind(model))
    ordered = sorted(
        kinds.items(), key=lambda item: STAGE_KEYS_FIRST.index(item[0][0]) if item[0][0] in STAGE_KEYS_FIRST else len(STAGE_KEYS_FIRST)
    )
    rows = [
        f"| `{key}` | {'all' if len(having) == len(stages) else ', '.join(having)} | {kind} | {default} | {meaning} |"
        for (key, kind, default, meaning), having in ordered
    ]
    return "\n".join(
        ["## stages", "", "A list; each has a kind.", "", "| key | kinds | type | default | meaning |", "|---|---|---|---|---|", *rows, ""]
    )


def _models(model: type[BaseModel], seen: set[type] | None = None) -> Iterator[type[BaseModel]]:
    """The model and those below it, in the order of their keys."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    for _, field in _fields(model):
        for part in _parts(field.annotation):
            yield from _models(part, seen)


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from _parts(argument)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    return ((field.alias or name, field) for name, field in model.model_fields.items())


def _meaning(model: type[BaseModel], key: str, field: FieldInfo) -> str:
    return meaning_of(model.__name__, key, field.description)


def _kind(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _heading(model: type[BaseModel]) -> str:
    return HEADINGS.get(model.__name__, model.__name__)


HEADINGS = {
    "Recipe": "The recipe",
    "MadeModel": "model, from: a model made on the spot",
    "PretrainedModel": "model, from: a model that is there",
    "Tags": "tags",
    "DataSource": "data: a source",
    "Filters": "filters of a source",
    "Weighted": "prompts, data: a source with a weight",
    "SupervisedCurriculum": "curriculum (sft, distill)",
    "SupervisedPhase": "phases of a curriculum (sft, distill)",
    "Thirds": "mix of a phase (sft, distill)",
    "Validation": "validation (sft, distill)",
    "Ewc": "ewc (sft, distill)",
    "Curriculum": "curriculum (rl)",
    "Phase": "phases of a curriculum (rl)",
    "DynamicSampling": "dynamic_sampling",
    "Hardware": "hardware",
    "RewardUse": "rewards: one of the list",
    "Evaluation": "evaluation",
    "Rollout": "rollout",
    "Trainer": "trainer",
    "Lora": "lora",
    "Keep": "keep",
    "Mix": "mix: one of the list",
}


def _type(field: FieldInfo) -> str:
    return _cell(describe(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return f"`{value}`" if value else "its keys' own"
    if value is None or value in ("", {}, []):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _any_of_the_kinds(definitions: JsonSchema) -> JsonSchema:
    """Each key that any kind of stage has: what one kind says of it, or any of what several say."""
    said: dict[str, list[JsonSchema]] = {}
    for stage in STAGES:
        for key, item in definitions[stage]["properties"].items():
            if item not in said.setdefault(key, []):
                said[key].append(item)
    return {key: items[0] if len(items) == 1 else {"anyOf": items, "description": items[0]["description"]} for key, items in said.items()}


def _change(schema: JsonSchema) -> JsonSchema:
    """The same with nothing required and null allowed for every key."""
    changed = _of_changes({key: value for key, value in schema.items() if key != "required"})
    if "properties" in changed:
        changed["properties"] = {
            key: {"anyOf": [item, NULL], "description": item["description"]} for key, item in changed["properties"].items()
        }
    return changed


def _of_changes(value: Any) -> Any:
    if isinstance(value, dict):
        renamed = {key: f"{item}{CHANGE}" if key == "$ref" else _of_changes(item) for key, item in value.items()}
        named = renamed.get("additionalProperties")  # what stands under names of the author's own
        return {**renamed, "additionalProperties": {"anyOf": [named, NULL]}} if isinstance(named, dict) else renamed
    return [_of_changes(item) for item in value] if isinstance(value, list) else value


def _ref(name: str) -> JsonSchema:
    return {"$ref": f"#/$defs/{name}"}
