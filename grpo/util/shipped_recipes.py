"""The recipes that come with the toolkit. Reads no schema, so that a shell completes their names at once."""

from __future__ import annotations

from pathlib import Path


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the toolkit, by name: package data once installed, the folder beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    folder = next((folder for folder in (package / "_recipes", package.parent / "recipes") if folder.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
