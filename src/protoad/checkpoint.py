"""Checkpoints: tensors and a JSON header in one safetensors file, written whole or not at all. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from protoad._atomic import write_atomically
from protoad.encoders.base import hash_tensors
from protoad.errors import CheckpointError

__all__ = ["FORMAT", "Checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = 1


class Checkpoint(NamedTuple):
    """What a file held: `tensors` by name, and `header`, plain JSON."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically: a file under another name, flushed to disk, then renamed.

    Args:
        path: of the file; its folder is made.
        tensors: name -> tensor, on any device.
        header: whatever JSON can hold: config, file list, version.

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**header, "format": FORMAT}, sort_keys=True)
    data = save(plain, metadata={"header": text, "sha256": _digest(plain, text)})
    write_atomically(path, lambda temporary: temporary.write_bytes(data), error=CheckpointError)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint back.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint there; train one first, or check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None
    text = metadata.get("header")
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of protoad")
    if metadata.get("sha256") != _digest(tensors, text):
        raise CheckpointError(f"{path}: damaged, its contents do not match their checksum; copy or train it again")
    header = json.loads(text)
    if header["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: written in format {header['format']}, this version reads up to {FORMAT}; update protoad"
        )
    return Checkpoint(tensors, header)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    return hash_tensors(text, sorted(tensors.items()))
