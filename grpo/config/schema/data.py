"""Data sources, the filters of their rows, and how a stage mixes several of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from grpo.config.schema.base import Fraction, Hint, Strict

SOURCE_KEYS = ("reasoning_gym", "jsonl", "json", "parquet", "csv", "folder", "hub", "general", "generator")
FILE_KEYS = ("jsonl", "json", "parquet", "csv", "folder", "measured")  # the keys of a source whose values are paths
SOURCE_COLUMN = "data_source"
"""The column that every row gets when it is loaded: the name of its source."""


class Filters(Strict):
    """Rules by which rows of a source are left out. Every row that is left out is counted under its reason."""

    min_prompt_tokens: PositiveInt | None = Field(
        None, description="Minimum length of the rendered prompt, in tokens of the recipe's model."
    )
    max_prompt_tokens: PositiveInt | None = Field(
        None, description="Maximum length of the rendered prompt, in tokens of the recipe's model."
    )
    language: str | None = Field(
        None, description="Language that the prompt must be in. A prompt with too few words to identify its language is kept."
    )
    min_language_share: Fraction = Field(0.8, description="Minimum share of the prompt's words that must be in this language.")
    min_pass_rate: Fraction | None = Field(None, description="Minimum measured share of correct samples (the column pass_rate).")
    max_pass_rate: Fraction | None = Field(None, description="Maximum measured share of correct samples (the column pass_rate).")
    duplicates: Literal["exact", "near"] | None = Field(
        None, description="Leave out prompts that repeat an earlier prompt of this source, exactly or nearly."
    )
    similarity: Annotated[float, Field(ge=0.5, le=1), Hint("Jaccard index from which prompts are near duplicates")] = Field(
        0.8, description="Jaccard index from which two prompts count as near duplicates."
    )
    decontaminate: bool = Field(False, description="Leave out prompts that share a run of words with a held-out prompt.")
    unreadable_gold: Literal["leave_out"] | None = Field(
        None,
        description="Leave out rows whose reference answer cannot be read by a required reward of their samples. By default such rows are "
        "only reported.",
    )
    decontaminate_words: PositiveInt = Field(
        13, description="Number of consecutive shared words that counts as contamination. A shorter held-out prompt counts as a whole."
    )


class DataSource(Strict):
    """Where rows come from: exactly one of reasoning_gym, jsonl, json, parquet, csv, folder, hub, general and generator."""

    reasoning_gym: str | None = Field(None, description="Name of a reasoning-gym task, such as chain_sum.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the reasoning-gym task, or keyword arguments of the generator."
    )
    jsonl: str | None = Field(None, description="File with one JSON object per line. The path is relative to the recipe.")
    parquet: str | None = Field(None, description="Parquet file. The path is relative to the recipe.")
    csv: str | None = Field(None, description="CSV file with a header line. The path is relative to the recipe.")
    json_: str | None = Field(None, alias="json", description="JSON file with one list of objects. The path is relative to the recipe.")
    folder: Annotated[str | None, Hint("a folder of .jsonl, .json, .csv and .parquet files")] = Field(
        None, description="Folder whose .jsonl, .json, .csv and .parquet files are all read, in the order of their names."
    )
    hub: Annotated[str | None, Hint("a dataset id on the Hugging Face Hub")] = Field(
        None, description="Id of a dataset on the Hugging Face Hub."
    )
    subset: str | None = Field(None, description="Subset (configuration) of a Hub dataset that has several, such as main.")
    split: Annotated[str | None, Hint("a split of a Hub dataset or of a folder, such as train or train+test")] = Field(
        None,
        description="Split of a Hub dataset (default: train), or of a folder, where it is looked for in the names of the files. train+test "
        "reads both.",
    )
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub dataset.")
    general: Annotated[bool, Hint("short rule-made instructions that are not sums")] = Field(
        False, description="Generate short general instructions by rules, as a contrast to sums."
    )
    generator: Annotated[str | None, Hint("./file.py:name, a Python generator of rows")] = Field(
        None, description="Python generator of rows, as ./file.py:name."
    )
    rows: PositiveInt | None = Field(None, description="Maximum number of rows. A generated source makes exactly this many.")
    seed: int = Field(0, description="Seed of generated rows.")
    columns: Annotated[dict[str, str], Hint("our name: the source's name")] = Field(
        default_factory=dict, description="Columns to rename, as our_name: its_name_in_the_source."
    )
    question: str | None = Field(
        None, description="Format string over the row's columns that makes the prompt, such as 'Calculate {expression}.'"
    )
    completion: Annotated[Literal["worked_sums"] | None, Hint("writes a worked sum, in the tags, into the column completion")] = Field(
        None, description="How to write a column completion. worked_sums: a sum that is solved step by step, inside the recipe's tags."
    )
    only: str | None = Field(None, description="Regular expression. Rows whose prompt does not match it are left out.")
    disjoint_from: list[str] = Field(
        default_factory=list,
        description="Sources whose prompts are left out of this one. Held-out prompts are always left out.",
    )
    measured: Annotated[str | None, Hint("the items.jsonl of an eval stage, or the samples.jsonl of a reject or rl stage")] = Field(
        None,
        description="File that gives the prompts a column pass_rate: the items.jsonl of an eval stage, or the samples.jsonl of a reject or rl "
        "stage.",
    )
    measured_in: Annotated[str | None, Hint("an earlier stage of kind eval, reject or rl")] = Field(
        None, description="Earlier stage of this recipe (eval, reject or rl) whose measurements give the prompts a column pass_rate."
    )
    measured_by: str | None = Field(
        None, description="Reward whose value 1 means correct. By default it is accuracy for an eval stage and math otherwise."
    )
    filters: Filters = Field(Filters(), description="Filters that leave out rows, each counted under its reason.")

    @property
    def given(self) -> dict[str, Any]:
        """The source keys that are written, with their values. A valid source has exactly one."""
        return {key: value for key in SOURCE_KEYS if (value := getattr(self, "json_" if key == "json" else key))}


class Weighted(Strict):
    """A source in a weighted mixture, from which rows are taken in proportion to its weight."""

    use: str = Field(description="Name of a data source, or of an earlier stage that makes a dataset.")
    weight: PositiveFloat = Field(description="Share of the rows that come from this source, relative to the weights of the other sources.")


Mixture = str | list[str | Weighted]


def source_names(sources: Mixture | None) -> list[str]:
    """Return the names in a stage's ``data`` or ``prompts``, in order."""
    listed = sources if isinstance(sources, list) else [sources] if sources is not None else []
    return [entry.use if isinstance(entry, Weighted) else entry for entry in listed]


def source_weights(sources: Mixture | None) -> dict[str, float] | None:
    """Return the weight of each source, or None if the rows are concatenated without weights."""
    weighted = [entry for entry in sources if isinstance(entry, Weighted)] if isinstance(sources, list) else []
    return {entry.use: entry.weight for entry in weighted} or None
