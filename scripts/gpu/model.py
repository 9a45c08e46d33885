"""SmolLM2-135M-Instruct as a Hugging Face folder, put together from the pieces of its GGUF file in WORK/pieces.

    python scripts/gpu/model.py FOLDER

A dry run without pieces makes a tiny model of random weights instead. With a network, use scripts/fetch_smollm2.py.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from pathlib import Path

import torch
from common import DRY, WORK, random_model, record
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PIECES = WORK / "pieces"


def joined_pieces() -> bytes:
    """The GGUF file. Raises ValueError where pieces are missing or broken."""
    pieces = sorted(PIECES.glob("model-*"), key=lambda piece: int(piece.name.rpartition("-")[2]))
    data = b"".join(piece.read_bytes() for piece in pieces)
    checksum = PIECES / "model.sha256"
    if not checksum.exists() or hashlib.sha256(data).hexdigest() != checksum.read_text().strip():
        names = ", ".join(piece.name for piece in pieces) or "none"
        raise ValueError(f"the pieces in {PIECES} do not add up to the model: found {names}, {len(data)} bytes")
    return data


def convert(gguf: bytes, out: Path) -> None:
    """Dequantize to bfloat16 and save."""
    folder = WORK / "gguf"
    folder.mkdir(exist_ok=True)
    (folder / "model.gguf").write_bytes(gguf)
    options = {"gguf_file": "model.gguf", "quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
    AutoModelForCausalLM.from_pretrained(folder, **options).save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").save_pretrained(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    if (out / "config.json").exists():
        return 0
    started = time.perf_counter()
    if DRY and not PIECES.exists():
        shutil.copytree(random_model("tiny"), out)
        return 0
    try:
        gguf = joined_pieces()
    except ValueError as error:
        record("model", error=str(error))
        return 1
    convert(gguf, out)
    record("model", s=round(time.perf_counter() - started, 1), mib=round(len(gguf) / 2**20))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
