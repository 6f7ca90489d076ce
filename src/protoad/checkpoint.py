"""Checkpoints: tensors and a JSON header in one safetensors file, written whole or not at all. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from protoad._atomic import write_atomically
from protoad.errors import CheckpointError

__all__ = ["FORMAT", "Checkpoint", "ShapedByData", "load_checkpoint", "save_checkpoint", "write_atomically"]

FORMAT = 2
"""Version of the file's layout; another one is refused."""

# Stands where the digest will be while it is computed: it covers every other byte of the file.
_NO_DIGEST = "0" * 64


class ShapedByData(nn.Module):
    """Base of modules whose buffers get their shapes from data, such as a memory bank.

    Such a buffer is registered empty, and again, filled, when the module is fitted. A fresh module makes room for
    what a state dict holds of it. Buffers that were registered with a shape keep it.

    Examples:
        >>> import torch
        >>> class Bank(ShapedByData):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("tokens", torch.empty(0))
        >>> filled, fresh = Bank(), Bank()
        >>> filled.register_buffer("tokens", torch.ones(3, 2))
        >>> _ = fresh.load_state_dict(filled.state_dict())
        >>> fresh.tokens.shape
        torch.Size([3, 2])
    """

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Registers a buffer, empty if its shape is not known yet, or fills one."""
        if tensor is not None and tensor.numel() == 0:
            self.__dict__.setdefault("_shaped_by_data", set()).add(name)
        super().register_buffer(name, tensor, persistent)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.__dict__.get("_shaped_by_data", ()):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                super().register_buffer(name, stored.new_empty(stored.shape, device=self.get_buffer(name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One text, digest and all: of several, safetensors writes any first, and the same content is not the same file.
    text = json.dumps({**header, "format": FORMAT, "sha256": _NO_DIGEST}, sort_keys=True)
    data = save(plain, metadata={"header": text})
    data = data.replace(_quoted(_NO_DIGEST), _quoted(hashlib.sha256(data).hexdigest()), 1)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(data), error=CheckpointError)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint back, if every byte of it is as it was written.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint there; train one first, or check the path")
    try:
        data = path.read_bytes()
        metadata = _metadata(data)
    except (OSError, ValueError, RecursionError) as error:  # of a JSON text that is none
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({type(error).__name__})") from None
    header = _header(metadata, path)
    digest = str(header.pop("sha256", ""))
    if len(digest) != len(_NO_DIGEST) or _digest_without(data, digest) != digest:
        raise CheckpointError(f"{path}: damaged, its contents do not match their checksum; copy or train it again")
    try:
        return Checkpoint(load(data), header)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None


def _metadata(data: bytes) -> dict[str, Any]:
    """The texts beside the tensors of a safetensors file: a length in 8 bytes, then JSON.

    Raises:
        ValueError: if there is no such JSON.
    """
    length = int.from_bytes(data[:8], "little")
    described = json.loads(data[8 : 8 + length])
    metadata = described.get("__metadata__", {}) if isinstance(described, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("no metadata")
    return metadata


def _header(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our header, of a format that this version reads: another one may be signed in another way."""
    try:
        header = json.loads(metadata["header"])
        found = header["format"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of protoad") from None
    if not isinstance(found, int) or found > FORMAT:
        raise CheckpointError(f"{path}: written in format {found}, this version reads {FORMAT}; update protoad")
    if found < FORMAT:
        raise CheckpointError(f"{path}: written in format {found}, this version reads {FORMAT}; train it again")
    return header


def _digest_without(data: bytes, digest: str) -> str:
    return hashlib.sha256(data.replace(_quoted(digest), _quoted(_NO_DIGEST), 1)).hexdigest()


def _quoted(digest: str) -> bytes:
    """As it stands in the file, a text within a text: the name before it keeps it apart from other digits."""
    return rf"\"sha256\": \"{digest}\"".encode()
