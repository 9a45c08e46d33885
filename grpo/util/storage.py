"""Is there room on the disk, what is said where there is none, and are these the bytes that were written?"""

from __future__ import annotations

import shutil
from pathlib import Path

from grpo.errors import StorageError


def check_room(folder: Path, num_bytes: int) -> None:
    """Raises StorageError where ``num_bytes`` do not fit beside ``folder``."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise StorageError(
            f"no room for {folder.name}: {folder.parent} has {free:,} bytes free and {num_bytes:,} are needed; make room and run again: earlier "
            "checkpoints are untouched and the run resumes"
        )


def log_error(file: Path, error: OSError) -> StorageError:
    free = shutil.disk_usage(file.parent).free
    return StorageError(
        f"{file} could not be written: {error.strerror or error} ({free:,} bytes are free); make room and run again: checkpoints are untouched "
        "and the run resumes"
    )


def storage_error(folder: Path, error: OSError) -> StorageError:
    free = shutil.disk_usage(folder.parent).free
    return StorageError(
        f"the checkpoint {folder.stem} could not be written to {folder.parent}: {error.strerror or error} ({free:,} bytes "
        "are free); make room and run again: earlier checkpoints are untouched and the run resumes"
    )


def file_digest(file: Path) -> str:
    """xxh3-128 of its bytes."""
    import xxhash

    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(2**24):
            digest.update(block)
    return digest.hexdigest()
