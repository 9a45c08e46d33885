"""What is wrong with a folder that should hold a model? Its files say so: nothing is loaded, and no code of it is run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grpo.util.cores import num_cores
from grpo.util.text import listed

CONFIG, ADAPTER, INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
GENERATION = "generation_config.json"
QUANTIZED = ("quantization_config", "compression_config")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SETTINGS = (GENERATION, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")  # most models, GPT-2 and its kin, MPT and DBRX
# By safetensors' dtype: unsigned integers of that size, all bits but the sign, and the least of them that is infinite or no number.
EXPONENTS = {
    "F64": (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
}
SCANNED_AT_A_TIME = 2**21  # bytes: they fit a core's cache
MOST_NAMES = 5


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file, in bytes from the beginning, and what it is."""

    file: Path
    name: str
    dtype: str
    start: int
    end: int


class DamagedFileError(ValueError):
    """A safetensors file that cannot be read whole."""


def local_folder(ref: str, base: Path) -> Path | None:
    """The folder of that name, seen from the recipe or from here; None where ``ref`` is a hub's name."""
    candidates = (base / ref, Path(os.path.expanduser(ref)))
    return next((folder for folder in candidates if folder.is_dir()), None)


def hub_copy(ref: str) -> Path | None:
    """Where the hub's model of that name is on this machine, or at least its config.json."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(ref, CONFIG)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def folder_problems(folder: Path) -> list[str]:
    """All that can be told without reading weights, a line each; [] where nothing is wrong."""
    if not folder.is_dir():
        return ["there is no such folder"]
    if not (folder / CONFIG).is_file() and (other := _something_else(folder)):
        return [other]
    return [*_config_problems(folder), *_weight_problems(folder), *_other_files(folder)]


def has_shapes_alone(folder: Path) -> bool:
    """A config.json that can be read, and nothing beside it."""
    return [item.name for item in folder.iterdir()] == [CONFIG] and not list(_config_problems(folder))


def nonfinite_tensors(folder: Path) -> list[str]:
    """A line for each file that holds NaN or infinity, with the names of the tensors. Reads all weights once, on all cores."""
    found = []
    with ThreadPoolExecutor(num_cores()) as pool:
        for file in weight_files(folder):
            try:
                tensors = [tensor for tensor in stored_tensors(file) if tensor.dtype in EXPONENTS]
            except (DamagedFileError, OSError):
                continue  # folder_problems tells of it
            wrong = [t.name for t, is_finite in zip(tensors, pool.map(_is_finite, tensors), strict=True) if not is_finite]
            if wrong:
                found.append(f"{file.name} holds NaN or infinity in {names(wrong)}; download it again, or start from an earlier checkpoint")
    return found


def stored_tensors(file: Path) -> list[StoredTensor]:
    """The tensors that a safetensors file's header names. Raises DamagedFileError where the file is not what its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        begin = opened.read(8)
        length = int.from_bytes(begin, "little")
        if begin == b"version ":
            raise DamagedFileError("a Git LFS pointer and not the file; fetch it with git lfs pull")
        if len(begin) < 8 or length > size - 8:
            raise DamagedFileError(f"cut short in its header, at {size:,} bytes; copy or download it again")
        try:
            header = json.loads(opened.read(length))
            tensors = [
                StoredTensor(file, name, about["dtype"], *(8 + length + offset for offset in about["data_offsets"]))
                for name, about in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedFileError("not a safetensors file: its header cannot be read; copy or download it again") from error
    needed = max((tensor.end for tensor in tensors), default=8 + length)
    if needed != size:
        raise DamagedFileError(f"{size:,} bytes long where its header says {needed:,}; copy or download it again")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a config.json says its model is made for."""
    text = config.get("text_config") or config
    return next((int(text[key]) for key in POSITIONS if isinstance(text.get(key), int)), None)


def names(words: list[str]) -> str:
    """A few of them, and how many more there are."""
    more = f" and {len(words) - MOST_NAMES} more" if len(words) > MOST_NAMES else ""
    return ", ".join(words[:MOST_NAMES]) + more


def _something_else(folder: Path) -> str | None:
    """What a folder without config.json is, where it is something known."""
    if (folder / "summary.json").is_file():
        made = _models_of_run(folder)
        return f"the folder of a run; its model is {made[-1]}" if made else "the folder of a run, in which no stage has made a model yet"
    if (folder / "model" / CONFIG).is_file():
        return f"the folder of a stage; its model is {folder / 'model'}"
    if (folder / ADAPTER).is_file():
        return f"an adapter without its base model; fold it first, with grpo export {folder} --to DIR, and name that folder"
    if gguf := sorted(file.name for file in folder.glob("*.gguf")):
        return f"GGUF files ({names(gguf)}) are not read; load them with transformers' gguf_file, and save_pretrained the model"
    if not weight_files(folder):
        there = listed(sorted(item.name for item in folder.iterdir())[:10])
        return f"holds no model, neither {CONFIG} nor *.safetensors; name a folder as save_pretrained writes it; found {there}"
    return None


def _models_of_run(run: Path) -> list[Path]:
    try:
        stages = json.loads((run / "summary.json").read_text(encoding="utf-8"))["stages"]
        outputs = [run / stage["output"] for stage in stages if stage.get("output")]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
    return [output for output in outputs if (output / CONFIG).is_file()]


def _config_problems(folder: Path) -> Iterator[str]:
    if not (folder / CONFIG).is_file():
        yield f"there is no {CONFIG} beside its weights; copy or download it too"
        return
    config = _json(folder / CONFIG)
    if config is None:
        yield f"{CONFIG} is not JSON; copy or download it again"
        return
    if not isinstance(config.get("model_type"), str):
        yield f"{CONFIG} has no model_type, so nobody can tell what architecture it is; take the {CONFIG} that belongs to the weights"
    for part in (config, config.get("text_config")):
        for key in QUANTIZED:
            if isinstance(part, Mapping) and isinstance(part.get(key), Mapping):
                method = part[key].get("quant_method", "method not named")
                yield f"{CONFIG} has {key} ({method}): quantized weights are not trained; take the checkpoint in bfloat16, or dequantize it"


def _weight_problems(folder: Path) -> Iterator[str]:
    files = weight_files(folder)
    if not files:
        if (folder / ADAPTER).is_file():
            yield f"an adapter without its base model; fold it first, with grpo export {folder} --to DIR, and name that folder"
        elif gguf := sorted(file.name for file in folder.glob("*.gguf")):
            yield f"holds no *.safetensors; GGUF files ({names(gguf)}) are not read; load them with gguf_file, and save_pretrained the model"
        elif pickles := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
            yield f"holds no *.safetensors; weights in a pickle are not loaded: save it anew with save_pretrained; found {names(pickles)}"
        else:
            yield "holds no *.safetensors; copy or download its weights too"
        return
    held: dict[str, set[str]] = {}
    for file in files:
        try:
            held[file.name] = {tensor.name for tensor in stored_tensors(file)}
        except DamagedFileError as error:
            yield f"{file.name} is damaged: {error}"
        except OSError as error:
            yield f"{file.name} cannot be read: {error.strerror or error}"
    if (folder / INDEX).is_file():
        yield from _index_problems(folder, held)


def _index_problems(folder: Path, held: Mapping[str, set[str]]) -> Iterator[str]:
    index = _json(folder / INDEX)
    shards = index.get("weight_map") if index is not None else None
    if not isinstance(shards, Mapping):
        yield f"{INDEX} is not an index of shards; copy or download it again"
        return
    if missing := sorted({str(shard) for shard in shards.values() if not (folder / str(shard)).is_file()}):
        yield f"{INDEX} names {names(missing)}, which is not there; the model is incomplete: copy or download it"
    if lost := sorted(name for name, shard in shards.items() if shard in held and name not in held[shard]):
        yield f"{INDEX} names tensors that their shards lack: {names(lost)}; copy or download the folder again"


def _other_files(folder: Path) -> Iterator[str]:
    for name in SETTINGS:
        if (folder / name).is_file() and _json(folder / name) is None:
            yield f"{name} is not JSON; copy or download it again"
    there = {item.name for item in folder.iterdir()}
    if not there & set(TOKENIZERS):
        yield f"there is no tokenizer, none of {listed(TOKENIZERS)}; copy the tokenizer's files there too"


def _json(file: Path) -> dict[str, Any] | None:
    """The object that a file holds; None where it holds something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _is_finite(tensor: StoredTensor) -> bool:
    kind, magnitude, infinite = EXPONENTS[tensor.dtype]
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.start)
        left = tensor.end - tensor.start
        while left > 0 and (block := opened.read(min(SCANNED_AT_A_TIME, left))):
            left -= len(block)
            if (np.frombuffer(block, dtype=kind) & kind(magnitude)).max(initial=0) >= infinite:
                return False
    return True
