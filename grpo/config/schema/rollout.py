"""The rollout workers: which engine they run, how many there are, and how new weights reach them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from grpo.config.schema.base import Fraction, Hint, Strict


class Rollout(Strict):
    """The rollout workers, which generate completions."""

    engine: Annotated[Literal["vllm", "hf", "scripted"], Hint("hf is transformers: slow, and where vLLM cannot run")] = Field(
        "vllm",
        description="Inference engine of the workers. hf is transformers, which is slow but runs where vLLM cannot. scripted runs your own "
        "function, for tests.",
    )
    workers: PositiveInt = Field(1, description="Number of workers. Each runs one engine in a process of its own.")
    min_workers: PositiveInt = Field(1, description="The run stops if fewer workers than this are left.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(3, description="Number of restarts of each worker before it is given up.")
    max_staleness: Annotated[int, Field(ge=0), Hint("number of steps by which the weights that sample may be older")] = Field(
        0,
        description="Maximum number of steps by which the weights that sample may be older than the weights that train. Above 0, samples are "
        "generated while earlier ones train.",
    )
    weight_change: Annotated[Literal["between_steps", "in_flight"], Hint("in_flight needs max_staleness")] = Field(
        "between_steps",
        description="When engines take new weights. in_flight: also while they generate the samples of a step, which needs max_staleness.",
    )
    gpus_per_worker: Annotated[PositiveInt, Hint("GPUs of one engine: tensor parallelism, vllm only")] = Field(
        1, description="Number of GPUs of each engine, which splits every layer over them (tensor parallelism, vllm only)."
    )
    sleep: bool = Field(
        False,
        description="Colocate engines and trainer on one GPU: while one of them works, the weights of the other wait in host memory.",
    )
    gpu_memory_frac: Annotated[Fraction | None, Hint("of a GPU, for its engine")] = Field(
        None,
        description="Fraction of a GPU's memory that its engine may use. By default it is 0.9, or 0.45 if a trainer shares the GPU and neither "
        "sleeps.",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Data type of the engines' weights and arithmetic.")
    kv_cache_gib: PositiveFloat = Field(1.0, description="Memory for the KV cache of one engine on a CPU, in GiB.")
    max_sequences: PositiveInt = Field(256, description="Maximum number of completions that one engine generates at the same time.")
    deadline_s: PositiveFloat = Field(600.0, description="A worker that finishes no sample for this many seconds is replaced.")
    sync: Literal["auto", "in_place", "rebuild"] = Field(
        "auto",
        description="How an engine takes new weights. auto: in place if the self-test at start proves it correct, and by rebuilding the engine "
        "otherwise.",
    )
    transport: Annotated[Literal["host", "nixl", "cuda_ipc"], Hint("nixl needs the package nixl; cuda_ipc is for one GPU")] = Field(
        "host",
        description="How new weights travel. host: through host memory. nixl: from device to device, over RDMA or NVLink; it needs the package "
        "nixl. cuda_ipc: within one GPU.",
    )
    script: Annotated[str | None, Hint("./file.py:name, a function of (request, version) that returns token ids; scripted engine only")] = (
        Field(
            None,
            description="Function of the scripted engine, as ./file.py:name. It takes (request, version) and returns the completion's token ids.",
        )
    )
