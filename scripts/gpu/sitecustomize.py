"""Two attributes that the toolkit uses and older versions of vLLM lack: the engine's weight version, and the versions of an output.

Python imports a module of this name by itself in every process that has this folder on its path, Ray's workers included. With the vLLM that the
toolkit pins, nothing is changed. With an older one an output's versions are None, so rollout.weight_change: in_flight cannot be used.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def _patch_engine(module: ModuleType) -> None:
    if not hasattr(module.LLMEngine, "set_weight_version"):
        module.LLMEngine.set_weight_version = lambda self, version: None


def _patch_outputs(module: ModuleType) -> None:
    if "weight_versions" not in getattr(module.CompletionOutput, "__dataclass_fields__", {}):
        module.CompletionOutput.weight_versions = None


PATCHES: dict[str, Callable[[ModuleType], None]] = {"vllm.v1.engine.llm_engine": _patch_engine, "vllm.outputs": _patch_outputs}


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds the modules in PATCHES as Python would, and patches each right after it was imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in PATCHES:
            return None
        sys.meta_path.remove(self)  # or the search below would come back here
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            PATCHES[fullname](module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _PatchingFinder())
