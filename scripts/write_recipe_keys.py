#!/usr/bin/env python3
"""Where does docs/recipe-keys.md come from? From the schema of recipes; run this after changing a key."""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo.config.key_reference import keys_page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe-keys.md"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/recipe-keys.md anew.")
    parser.add_argument("--out", type=Path, default=PAGE, help="where (default: docs/recipe-keys.md)")
    args = parser.parse_args()
    args.out.write_text(keys_page(), encoding="utf-8")
    print(f"{args.out}: written")


if __name__ == "__main__":
    main()
