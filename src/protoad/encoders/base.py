"""What every frozen feature extractor offers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from protoad.distributed import Group
from protoad.errors import EncoderError, ShapeError

__all__ = ["Encoder", "hash_tensors", "next_sizes", "parse_options"]


class Encoder(nn.Module):
    """A frozen map from images to tokens: `(b 3 y x)` in [0, 1] to `(b n d)`. Few take the points themselves.

    No parameter asks for a gradient and the module never leaves eval mode, so it can sit inside a trained model.
    Subclasses set `name`, `dim` and `stride` and write `forward`; those with statistics of the shots also write `fit`.

    Attributes:
        name: what `build_encoder` rebuilds it from, such as "filter_bank" or "timm:vit_base_patch14_dinov2".
        dim: d, channels of a token.
        stride: pixels from one token to the next.
        looks_at: "image", or "points": `(b 6 y x)`, metres, NaN where there is no point, and its unit normal.
    """

    looks_at: ClassVar[Literal["image", "points"]] = "image"
    name: str
    dim: int
    stride: int

    def grid(self, size: int) -> tuple[int, int]:
        """Token grid `(ty, tx)` of a `size` x `size` image.

        Raises:
            EncoderError: if the size is not a multiple of the stride; names the nearest sizes that are.
        """
        if size < self.stride or size % self.stride:
            raise EncoderError(
                f"{self.name}: an image of {size} x {size} px does not divide into tokens of {self.stride} px; "
                f"use {next_sizes(size, self.stride)}"
            )
        return size // self.stride, size // self.stride

    def fit(self, images: Tensor, keep: Tensor | None = None, process_group: Group = None) -> Encoder:
        """Takes statistics from the shots; a pretrained encoder has none to take and returns itself unchanged.

        Args:
            images: `(b 3 y x)` in [0, 1], the shots.
            keep: `(b n)` bool, tokens that count; all of them by default.
            process_group: processes that hold the shots together, each some; all take the same statistics.
        """
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Tokens `(b n d)`, rows of the grid one after the other, of `images` `(b 3 y x)` in [0, 1]."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of everything that decides the output: name, weights, statistics, seed."""
        return hash_tensors(self.name, self.state_dict().items())

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode whatever is asked: a frozen encoder has no other."""
        return super().train(False)

    def check_images(self, images: Tensor) -> tuple[int, int]:
        """Token grid `(ty, tx)` of a batch of images.

        Raises:
            ShapeError: if it is not a floating point `(b 3 y x)`.
            EncoderError: if a side is not a multiple of the stride.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images: expected (b 3 y x) in [0, 1], got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ShapeError(
                f"images: expected floating point in [0, 1], got {images.dtype}; divide 8-bit images by 255"
            )
        return self.grid(images.shape[2])[0], self.grid(images.shape[3])[1]


def next_sizes(size: int, stride: int) -> str:
    """The multiples of `stride` around `size`, as words: "392 or 406"."""
    below = size // stride * stride
    return f"{below} or {below + stride}" if below else str(stride)


def hash_tensors(title: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hexadecimal SHA-256 of a title and of named tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(title.encode())
    for name, tensor in tensors:
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parse_options(text: str, name: str) -> dict[str, Any]:
    """`"a=1,b=0.5,c=same"` as a dictionary: numbers, true, false and none are read as such, the rest stays text.

    Raises:
        EncoderError: if a piece has no `=`, or a key comes twice.
    """
    options: dict[str, Any] = {}
    for piece in filter(None, text.split(",")):
        key, equals, value = piece.partition("=")
        if not equals or not key or key in options:
            raise EncoderError(
                f"encoder {name!r}: cannot read {piece!r}; write key=value, once each, with commas between"
            )
        options[key] = _read_value(value)
    return options


def _read_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
