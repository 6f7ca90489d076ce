"""Tokens of frozen encoders, computed once per image instead of once per epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from protoad._atomic import write_atomically
from protoad.encoders.base import Encoder, hash_tensors
from protoad.errors import ShapeError

__all__ = ["FeatureCache"]

_CHUNK = 8


class FeatureCache:
    """Remembers what an encoder said about an image.

    An entry belongs to the encoder's fingerprint and the image's bytes, so other weights, statistics or pixels never
    meet old tokens.

    Args:
        folder: keeps the entries as safetensors files across runs; None keeps them in memory while the object lives.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._memory: dict[str, Tensor] = {}

    def encode(self, encoder: Encoder, images: Tensor, keys: Sequence[str] | None = None) -> Tensor:
        """Tokens `(b n d)` of `images` `(b 3 y x)`, constants for autograd, on the device of the images.

        Args:
            encoder: a frozen encoder.
            images: values in [0, 1].
            keys: one name per image that stands for its bytes, such as its path and size; by default the bytes
                are hashed.

        Raises:
            ShapeError: if there are not as many keys as images.
        """
        if keys is not None and len(keys) != len(images):
            raise ShapeError(f"keys: expected one per image, {len(images)}, got {len(keys)}")
        fingerprint = encoder.fingerprint()
        parts = [hash_tensors("image", [("image", image)]) for image in images] if keys is None else list(keys)
        entries = [hashlib.sha256(f"{fingerprint} {part}".encode()).hexdigest() for part in parts]
        tokens = {entry: found for entry in dict.fromkeys(entries) if (found := self._read(entry)) is not None}
        absent = [index for index, entry in enumerate(entries) if entry not in tokens and entry not in entries[:index]]
        for start in range(0, len(absent), _CHUNK):
            chosen = absent[start : start + _CHUNK]
            with torch.inference_mode():
                encoded = encoder(images[chosen])
            for index, result in zip(chosen, encoded.cpu(), strict=True):
                tokens[entries[index]] = result.clone()  # not a view that keeps its whole chunk alive
                self._write(entries[index], tokens[entries[index]])
        return torch.stack([tokens[entry] for entry in entries]).to(images.device)

    def _read(self, entry: str) -> Tensor | None:
        if self.folder is None:
            return self._memory.get(entry)
        path = self.folder / f"{entry}.safetensors"
        if not path.is_file():
            return None
        import safetensors
        from safetensors.torch import load

        try:
            stored = load(path.read_bytes())
        except (OSError, ValueError, safetensors.SafetensorError):
            return None
        tokens = stored.get("tokens")
        digest = stored.get("sha256")
        if tokens is None or digest is None or not torch.equal(digest, _digest(tokens)):
            return None  # damaged: computed again and overwritten
        return tokens

    def _write(self, entry: str, tokens: Tensor) -> None:
        if self.folder is None:
            self._memory[entry] = tokens
            return
        from safetensors.torch import save

        data = save({"tokens": tokens.contiguous(), "sha256": _digest(tokens)})
        write_atomically(self.folder / f"{entry}.safetensors", lambda temporary: temporary.write_bytes(data))


def _digest(tokens: Tensor) -> Tensor:
    return torch.tensor(list(bytes.fromhex(hash_tensors("tokens", [("tokens", tokens)]))), dtype=torch.uint8)
