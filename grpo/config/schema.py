"""The schema of a recipe: every key there is, its type, its default and its meaning. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from grpo.algorithm.names import NAMES
from grpo.algorithm.table import TABLE

NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
TopP = Annotated[float, Field(gt=0, le=1)]  # engines refuse 0, which leaves no token to sample


class Strict(BaseModel):
    """Unknown keys are errors; a recipe does not change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


Document = Literal["worked", "guess", "untagged", "arithmetic"]


class MadeModel(Strict):
    """A tiny model made and pre-trained on the spot (grpo/resources/tiny_models.py), cached by the hash of these settings."""

    make: Literal["tiny_qwen2", "tiny_llama"]
    seed: int = 0
    hidden_size: PositiveInt = 192
    layers: PositiveInt = 4
    heads: PositiveInt = 2
    problems: str = Field(
        description="the data source whose problems the corpus is written from; rows need a column expression, such as '3 + 4'"
    )
    pretrain_updates: Annotated[int, Field(ge=0)] = 400
    pretrain_learning_rate: PositiveFloat = 3e-3
    pretrain_seed: int = 100
    corpus: dict[Document, NonNegativeFloat] = Field(
        default_factory=dict, description="shares of worked, guess and untagged documents at the end"
    )


class PretrainedModel(Strict):
    """A Hugging Face folder or hub id."""

    path: str


class Tags(Strict):
    """Names of the tags around thinking and answer, without brackets."""

    think: str = "think"
    answer: str = "answer"

    @property
    def texts(self) -> tuple[str, ...]:
        """The four tags as they are written."""
        return tuple(f"<{slash}{name}>" for name in (self.think, self.answer) for slash in ("", "/"))


SOURCE_KEYS = ("reasoning_gym", "jsonl", "json", "parquet", "csv", "folder", "hub", "general", "generator")
FILE_KEYS = ("jsonl", "json", "parquet", "csv", "folder", "measured")  # of a source: their values are paths


class Filters(Strict):
    """Rows that a source leaves out, each counted under its reason."""

    min_prompt_tokens: PositiveInt | None = Field(None, description="of the rendered prompt, in tokens of the recipe's model")
    max_prompt_tokens: PositiveInt | None = None
    language: str | None = Field(None, description="the prompt must be in this language; a prompt of too few words to tell stays")
    min_language_share: Fraction = 0.8
    min_pass_rate: Fraction | None = Field(None, description="least measured share of right samples (the column pass_rate)")
    max_pass_rate: Fraction | None = None
    duplicates: Literal["exact", "near"] | None = Field(None, description="leave out prompts that repeat an earlier one of this source")
    similarity: Annotated[float, Field(ge=0.5, le=1)] = Field(0.8, description="Jaccard index from which prompts are near duplicates")
    decontaminate: bool = Field(False, description="leave out prompts that share words in a row with a held-out one")
    unreadable_gold: Literal["leave_out"] | None = Field(
        None, description="leave out rows whose gold answer a required reward of their samples cannot read; by default they are reported"
    )
    decontaminate_words: PositiveInt = Field(13, description="so many in a row; a shorter held-out prompt counts as a whole")


SOURCE_COLUMN = "data_source"
"""Every row gets it when it is loaded: the name of its source."""


class DataSource(Strict):
    """Where rows come from. Exactly one of the source keys (reasoning_gym, jsonl, json, parquet, csv, folder, hub, general, generator)."""

    reasoning_gym: str | None = Field(None, description="a task name, such as chain_sum")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="the task's own settings (reasoning_gym), or the generator's keyword arguments"
    )
    jsonl: str | None = None
    parquet: str | None = None
    csv: str | None = None
    json_: str | None = Field(None, alias="json", description="one list of objects")
    folder: str | None = Field(None, description="all .jsonl, .json, .csv and .parquet files below it, in the order of their names")
    hub: str | None = Field(None, description="a data set id on the Hugging Face hub")
    subset: str | None = Field(None, description="of a hub data set that has several, such as main")
    split: str | None = Field(
        None,
        description="of a hub data set, by default train; or of a folder, whose files it is looked for in the names of; train+test: both",
    )
    revision: str | None = Field(None, description="a commit, tag or branch of a hub data set")
    general: bool = Field(False, description="short rule-made instructions that are not sums")
    generator: str | None = Field(None, description="./file.py:name, a Python generator of rows")
    rows: PositiveInt | None = Field(None, description="at most so many rows (for generated sources: exactly so many)")
    seed: int = 0
    columns: dict[str, str] = Field(default_factory=dict, description="our name: the source's name")
    question: str | None = Field(
        None, description="a format string over the row's columns that becomes the prompt, such as 'Calculate {expression}.'"
    )
    completion: Literal["worked_sums"] | None = Field(
        None, description="write a column completion: a sum worked out step by step, in the tags"
    )
    only: str | None = Field(None, description="a regular expression: rows whose prompt does not match it are left out")
    disjoint_from: list[str] = Field(
        default_factory=list, description="sources whose prompts are left out of this one; held-out sets are left out anyway"
    )
    measured: str | None = Field(
        None, description="items.jsonl of an eval stage, or samples.jsonl of a reject or rl stage: gives its prompts a column pass_rate"
    )
    measured_in: str | None = Field(None, description="the same, of an earlier stage of this recipe (eval, reject, rl)")
    measured_by: str | None = Field(None, description="the reward part whose 1 means right; accuracy (eval) or math by default")
    filters: Filters = Filters()

    @property
    def given(self) -> dict[str, Any]:
        """The source keys that are written, with their values; a sound source has exactly one."""
        return {key: value for key in SOURCE_KEYS if (value := getattr(self, "json_" if key == "json" else key))}


class Weighted(Strict):
    """A source's part in a mixture: of every so many rows, in proportion to the other sources' weights."""

    use: str
    weight: PositiveFloat


Mixture = str | list[str | Weighted]


def source_names(sources: Mixture | None) -> list[str]:
    """The names in what a stage's data: or prompts: says, in order."""
    listed = sources if isinstance(sources, list) else [sources] if sources is not None else []
    return [entry.use if isinstance(entry, Weighted) else entry for entry in listed]


def source_weights(sources: Mixture | None) -> dict[str, float] | None:
    """Weight by name, or None where the rows are simply put together."""
    weighted = [entry for entry in sources if isinstance(entry, Weighted)] if isinstance(sources, list) else []
    return {entry.use: entry.weight for entry in weighted} or None


class RewardUse(Strict):
    """One reward in a recipe: its reference, its weight, and its own settings beside them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str = Field(description="a shipped name, ./file.py:name or package.module:name")
    name: str | None = Field(None, description="how metrics call it; the reference's own name by default")
    weight: float | list[list[float]] = Field(
        1.0,
        description="in an rl stage also [[update, weight], ...]: each weight holds from that many updates on, and before the first it is 0",
    )
    required: bool | None = Field(None, description="drop a sample that this reward cannot judge (math does by default)")
    on_error: Literal["skip", "stop"] = Field("skip", description="skip: go on without the samples on which it fails; stop: end the run")
    max_error_frac: Fraction = Field(0.5, description="with skip: the run ends where it fails on more than this share of a step's samples")

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def part(self) -> str:
        """How metrics and keep.min_reward call it: its name, or that of its function."""
        return self.name or self.use.rpartition(":")[2]

    @property
    def is_scheduled(self) -> bool:
        return isinstance(self.weight, list)

    def weight_at(self, update: int) -> float:
        """Its weight once so many updates are made. It follows from that number alone, so that a resumed run has the same."""
        if not isinstance(self.weight, list):
            return self.weight
        return next((weight for since, weight in reversed(self.weight) if since <= update), 0.0)


class Evaluation(Strict):
    """The held-out set and how every stage that makes a model is measured on it. Defaults: the paper's decoding."""

    prompts: str
    rows: PositiveInt | None = None
    samples_per_prompt: PositiveInt = 1
    temperature: NonNegativeFloat = 0.6
    top_p: TopP = 0.95
    min_p: Fraction = 0.0
    max_prompt_tokens: PositiveInt | None = Field(
        None, description="longer prompts are left out and counted; by default what the model has room for beside a completion"
    )
    max_completion_tokens: PositiveInt = 256
    seed: int = 1234
    pass_at: list[PositiveInt] = Field(default_factory=lambda: [1])
    accuracy: RewardUse = RewardUse(use="math")
    well_formed: RewardUse | None = RewardUse(use="format")
    lenient: RewardUse = RewardUse(use="math", extract="last_number")


class Rollout(Strict):
    """The engines and how many of them."""

    engine: Literal["vllm", "hf", "scripted"] = Field("vllm", description="hf is transformers: slow, and where vLLM cannot run")
    workers: PositiveInt = 1
    min_workers: PositiveInt = Field(1, description="the run stops where fewer are left")
    max_restarts: Annotated[int, Field(ge=0)] = Field(3, description="of each worker, before it is given up")
    max_staleness: Annotated[int, Field(ge=0)] = Field(
        0, description="n: samples are drawn while earlier ones train, by weights that are at most n steps old"
    )
    weight_change: Literal["between_steps", "in_flight"] = Field(
        "between_steps", description="in_flight: engines take new weights while a step's samples are being drawn; needs max_staleness"
    )
    gpus_per_worker: PositiveInt = Field(1, description="GPUs that share out each layer of an engine (tensor parallel, vllm only)")
    sleep: bool = Field(
        False, description="engines and trainer share one GPU by turns: the weights of whichever does not work wait in main memory"
    )
    gpu_memory_frac: Fraction | None = Field(
        None, description="of a GPU for its engine; by default 0.9, or 0.45 where a trainer shares it and neither sleeps"
    )
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    kv_cache_gib: PositiveFloat = 1.0
    max_sequences: PositiveInt = 256
    deadline_s: PositiveFloat = Field(600.0, description="a worker that finishes no sample for so long is replaced")
    sync: Literal["auto", "in_place", "rebuild"] = Field(
        "auto", description="auto: in place where the start-up self-test proves it right, else rebuild"
    )
    transport: Literal["host", "nixl", "cuda_ipc"] = Field(
        "host",
        description="of new weights: through main memory, from device to device (RDMA, NVLink; needs the package nixl), or within one GPU",
    )
    script: str | None = Field(
        None, description="scripted engine only: ./file.py:name, a function of (request, version) that returns the completion's token ids"
    )


Shard = Literal["none", "gradients", "parameters"]


class Trainer(Strict):
    """The policy trainer's processes, and what each of them holds."""

    ranks: PositiveInt = Field(1, description="processes that share every update; one a GPU, or some of a CPU's cores each")
    shard: Shard = Field("none", description="what ranks share out: gradients and optimizer (ZeRO 2), or parameters too (ZeRO 3)")
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="of matrix products; the weights themselves are float32")
    offload_optimizer: bool = Field(False, description="keep the optimizer's state in host memory between updates (GPUs)")
    compile: bool = Field(False, description="fuse norms and feed-forward layers with torch.compile")


class Hardware(Strict):
    """What the recipe is meant to run on, for `grpo plan` only; what is left out is this machine's."""

    nodes: PositiveInt = 1
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="of one node")
    gpu_memory_gib: PositiveFloat | None = Field(None, description="of one GPU")
    cpus: PositiveInt | None = Field(None, description="cores of one node")
    memory_gib: PositiveFloat | None = Field(None, description="main memory of one node")
    disk_gib: PositiveFloat | None = Field(None, description="free where the run's folder is")
    tflops: PositiveFloat | None = Field(None, description="what one device sustains in bfloat16 matrix products, for times")
    bandwidth_gb_s: PositiveFloat | None = Field(None, description="what one device reads from its memory, for times")


class StageBase(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
    seed: int | None = Field(None, description="the recipe's seed by default")


class Lora(Strict):
    """Train low-rank adapters instead of all weights; the weights below them are the reference, at no cost."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = Field(32.0, description="an adapter's product is scaled with alpha / rank")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="names of linear layers, such as q_proj; never the output layer, embeddings, routers or fused experts"
    )


class OptimizerKeys(Strict):
    """Keys of every stage that trains."""

    learning_rate: PositiveFloat = 1e-6
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_learning_rate: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    max_grad_norm: PositiveFloat = 1.0
    max_tokens_per_micro_batch: PositiveInt | None = Field(
        None, description="tokens in one forward pass; by default what fits, by the model's shapes and the machine's memory"
    )
    checkpoint_every: PositiveInt | None = Field(
        10, description="steps (rl) or updates between checkpoints; null keeps only those of a run that is stopped"
    )
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(2, description="the newest so many stay until the stage is done, and the best")
    lora: Lora | None = None
    gradient_checkpointing: bool = Field(
        False, description="keep each layer's input only and compute the rest again: less memory, more time"
    )


class ByDifficulty(Strict):
    """How it is known which rows are easy: by a column, measured or given."""

    by: str = Field("pass_rate", description="the column that says how hard a row is")
    easy: Literal["high", "low"] = Field("high", description="high: a large value of the column means an easy prompt, as of pass_rate")


class Thirds(Strict):
    """What the easiest, the middle and the hardest third of the rows each count in a mixture."""

    easy: NonNegativeFloat = Field(0.0, description="what the easiest third of the rows counts")
    medium: NonNegativeFloat = Field(0.0, description="what the middle third counts")
    hard: NonNegativeFloat = Field(0.0, description="what the hardest third counts")

    @property
    def weights(self) -> tuple[float, float, float]:
        return self.easy, self.medium, self.hard


class SupervisedPhase(Strict):
    """So many updates in a row, with rows, size and rate of their own."""

    updates: PositiveInt = Field(description="how many the phase has")
    mix: Thirds | None = Field(None, description="how much of each third of the rows, by difficulty; by default all rows alike")
    learning_rate_frac: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="of the stage's learning rate")
    batch_size: PositiveInt | None = Field(None, description="the stage's own by default")
    weight_decay: NonNegativeFloat | None = Field(None, description="the stage's own by default")


class SupervisedCurriculum(ByDifficulty):
    """Phases instead of epochs: easy rows first, slowly, then harder ones, then all."""

    phases: Annotated[list[SupervisedPhase], Field(min_length=1)] = Field(description="in order")


class Validation(Strict):
    """A look at the model every so many updates. Where it got worse, training goes on from the best model so far, more slowly."""

    every: PositiveInt = Field(description="updates from one look to the next; there is always one after the stage's last update")
    by: Literal["loss", "accuracy"] = Field(
        "loss", description="loss: on rows held back from the stage's; accuracy: the recipe's evaluation"
    )
    rows: PositiveInt = Field(
        64, description="of the stage's rows, held back for the loss and never learned; a prompt's rows stay together"
    )
    tolerance: NonNegativeFloat | None = Field(
        None, description="so much worse than the best is no drop; by default 0.01 of the loss, or a standard error of the accuracy"
    )
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="times this at each drop, until the stage ends")


class Ewc(Strict):
    """Elastic weight consolidation: weights that earlier stages' rows need are held to where this stage found them."""

    coef: PositiveFloat = Field(description="lambda of the paper's equation 3")
    rows: PositiveInt = Field(256, description="of earlier stages, by which it is measured what each weight means to them")


class SupervisedKeys(OptimizerKeys):
    epochs: PositiveInt = 1
    checkpoint_every: PositiveInt | None = 50
    batch_size: PositiveInt = 32
    max_tokens: PositiveInt = Field(1024, description="longer rows are left out and counted")
    curriculum: SupervisedCurriculum | None = Field(None, description="phases by difficulty, instead of epochs")
    validation: Validation | None = Field(None, description="look at the model now and then, and go back to the best one on a drop")
    replay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="this share of every update's sequences are rows of earlier stages, beside the stage's own batch_size"
    )
    ewc: Ewc | None = Field(None, description="hold weights that earlier stages' rows need (arXiv:1612.00796)")
    earlier: list[str] | None = Field(
        None, description="the stages whose data: replay and ewc keep alive; by default all earlier ones of kind sft or distill with data:"
    )

    def num_updates(self, num_rows: int) -> int:
        """How many a stage makes of so many rows of its own."""
        if self.curriculum is not None:
            return sum(phase.updates for phase in self.curriculum.phases)
        return -(-num_rows // self.batch_size) * self.epochs


class SftStage(StageBase, SupervisedKeys):
    kind: Literal["sft"]
    from_: str = Field("base", alias="from")
    data: Mixture


class Phase(Strict):
    """From this step on, prompts are drawn from the easiest ``easiest_frac`` of all."""

    from_step: Annotated[int, Field(ge=0)] = Field(description="the first step is 0")
    easiest_frac: Annotated[float, Field(gt=0, le=1)]


class Curriculum(ByDifficulty):
    """Easy prompts first: which ones are in play, by a column that says how hard they are."""

    phases: Annotated[list[Phase], Field(min_length=1)]


class DynamicSampling(Strict):
    """DAPO's (arXiv:2503.14476, section 3.2), bounded: groups whose rewards are all equal are replaced by groups of fresh prompts."""

    max_rounds: PositiveInt = Field(3, description="of replacing, in one step; after them the step goes on with what it has")


class RlStage(StageBase, OptimizerKeys):
    kind: Literal["rl"]
    from_: str = Field("base", alias="from")
    prompts: Mixture
    curriculum: Curriculum | None = None
    dynamic_sampling: DynamicSampling | None = None
    algorithm: str = "grpo"
    rewards: Annotated[list[RewardUse], Field(min_length=1)]
    steps: PositiveInt
    prompts_per_step: PositiveInt = 16
    samples_per_prompt: Annotated[int, Field(ge=2)] = Field(
        16, description="an advantage is a reward minus its group's mean, so a group of one would teach nothing"
    )
    updates_per_rollout: PositiveInt = 1
    max_prompt_tokens: PositiveInt = 512
    max_completion_tokens: PositiveInt = 256
    temperature: PositiveFloat = 1.0
    top_p: TopP = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Fraction = 0.0
    stop: list[str] = Field(default_factory=list)
    kl_coef: NonNegativeFloat | None = Field(None, description="the algorithm's own by default")
    kl_in: Literal["loss", "reward"] | None = None
    clip_low: PositiveFloat | None = None
    clip_high: PositiveFloat | None = None
    importance: Literal["token", "sequence", "none"] | None = Field(
        None, description="correct for the engine's own rounding: truncated importance sampling"
    )
    importance_cap: PositiveFloat | None = None
    mask_truncated: bool | None = Field(None, description="completions that reached max_completion_tokens teach nothing")
    refresh_reference_every: PositiveInt | None = Field(None, description="reference := policy every so many updates")
    eval_every: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, keys: Any) -> Any:
        """An algorithm that names a paper's run brings that run's settings for whatever the recipe leaves open."""
        if not isinstance(keys, dict) or keys.get("algorithm") not in NAMES:
            return keys
        return {**TABLE[keys["algorithm"]].published, **keys}


class Keep(Strict):
    """Which sampled completions survive rejection."""

    min_reward: dict[str, float] = Field(default_factory=lambda: {"math": 1.0}, description="reward part: least value")
    per_prompt: PositiveInt = 1
    max_completion_tokens: PositiveInt | None = None
    language: str | None = Field("en", description="thinking must be in this language; null switches the filter off")
    min_language_share: Fraction = 0.8
    max_repetition: Fraction = Field(0.5, description="largest share of repeated 4-grams")
    code_blocks: bool = Field(False, description="keep completions with code blocks")
    duplicates: bool = Field(False, description="keep completions that equal an earlier one of the same prompt")


class Mix(Strict):
    """Rows added to what a stage made."""

    use: str
    rows: PositiveInt | None = None


class SamplingKeys(Strict):
    samples_per_prompt: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    top_p: TopP = 1.0
    min_p: Fraction = Field(0.0, description="leaves out tokens less likely than this share of the likeliest one's probability")
    max_prompt_tokens: PositiveInt = 512
    max_completion_tokens: PositiveInt = 256


class RejectStage(StageBase, SamplingKeys):
    kind: Literal["reject"]
    from_: str = Field("base", alias="from")
    prompts: Mixture
    rows: PositiveInt | None = Field(None, description="prompts to use; all by default")
    rewards: Annotated[list[RewardUse], Field(min_length=1)]
    keep: Keep = Keep()
    mix: list[Mix] = Field(default_factory=list)


class DistillStage(StageBase, SupervisedKeys, SamplingKeys):
    kind: Literal["distill"]
    from_: str | MadeModel | PretrainedModel = Field(alias="from")
    teacher: str | None = None
    prompts: Mixture | None = None
    rows: PositiveInt | None = None
    rewards: list[RewardUse] = Field(default_factory=list)
    keep: Keep = Keep()
    data: Mixture | None = None
    samples_per_prompt: PositiveInt = 1


class EvalStage(StageBase):
    kind: Literal["eval"]
    from_: str = Field("base", alias="from")
    evaluation: Evaluation | None = None


AnyStage = SftStage | RlStage | RejectStage | DistillStage | EvalStage
Stage = Annotated[AnyStage, Field(discriminator="kind")]


class Recipe(Strict):
    """A whole run: a model, named data, stages in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
    description: str = ""
    seed: int = 0
    model: str | MadeModel | PretrainedModel
    template: str = Field("r1_zero", description="r1_zero, chat (the tokenizer's own), plain, or ./file.jinja")
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="what the chat template is told besides the messages, such as {enable_thinking: false}"
    )
    tags: Tags = Tags()
    data: dict[str, DataSource] = Field(default_factory=dict)
    evaluation: Evaluation | None = None
    deterministic: bool = Field(True, description="prompts go to fixed workers, so that a run repeats bit for bit on a CPU")
    rollout: Rollout = Rollout()
    trainer: Trainer = Trainer()
    hardware: Hardware = Field(Hardware(), description="what grpo plan reckons with; this machine by default")
    reward_deadline_s: PositiveFloat = 5.0
    canary: str | None = Field(
        None,
        description="a right completion around {answer}, by which the accuracy reward is tried before training; by default thinking and an "
        "answer in the recipe's tags; an empty string tries nothing",
    )
    trackers: list[str] = Field(
        default_factory=list,
        description="tensorboard, wandb, mlflow, trackio or ./file.py:Class; the run's own files are written in any case",
    )
    stages: Annotated[list[Stage], Field(min_length=1)]


def imitated_sources(recipe: Recipe) -> set[str]:
    """The data sources whose rows models imitate, so that each needs a completion."""
    taught = [stage.data for stage in recipe.stages if isinstance(stage, SftStage | DistillStage)]
    mixed = [mix.use for stage in recipe.stages if isinstance(stage, RejectStage) for mix in stage.mix]
    return {name for sources in [*taught, *mixed] for name in source_names(sources)} & recipe.data.keys()


def kept_alive(recipe: Recipe, stage: SftStage | DistillStage) -> list[SftStage | DistillStage]:
    """The earlier stages whose rows ``stage`` replays or holds its weights for."""
    if not stage.replay and stage.ewc is None:
        return []
    names = [other.name for other in recipe.stages]
    before = [other for other in recipe.stages[: names.index(stage.name)] if isinstance(other, SftStage | DistillStage) and other.data]
    return [other for other in before if stage.earlier is None or other.name in stage.earlier]
