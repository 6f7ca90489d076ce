"""Frozen feature extractors: images to tokens, computed once.

`build_encoder("filter_bank")` needs no weights; `build_encoder("timm:MODEL")` takes any ViT or CNN of timm, and
`build_encoder("fpfh")` looks at the points of a cloud instead of an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from protoad.encoders.base import Encoder
from protoad.encoders.cache import FeatureCache
from protoad.encoders.filter_bank import FilterBankEncoder
from protoad.encoders.fpfh import FPFHEncoder, point_feature_histograms
from protoad.encoders.timm_backbone import TimmEncoder
from protoad.errors import EncoderError

__all__ = [
    "Encoder",
    "FPFHEncoder",
    "FeatureCache",
    "FilterBankEncoder",
    "TimmEncoder",
    "build_encoder",
    "looks_at",
    "point_feature_histograms",
]


def looks_at(name: str) -> Literal["image", "points"]:
    """What the encoder of a name will look at, without building it."""
    return FPFHEncoder.looks_at if _is_fpfh(name) else Encoder.looks_at


def build_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    image_size: int = 224,
    seed: int = 0,
    stride: int | None = None,
) -> Encoder:
    """A frozen encoder by name.

    Args:
        name: "filter_bank", "timm:MODEL[,key=value...]" or "fpfh[,radius=0.25,max_neighbors=100,stride=8]".
        weights: weight file of a timm model; None fetches the published weights, "random" initialises at random.
        image_size: side of the square images it will see, pixels.
        seed: of the random frequencies (filter_bank) or of random weights.
        stride: pixels from one token to the next, for encoders that leave the choice (filter_bank and fpfh, else 8), so
            that they share the grid of another; a timm model has its own.

    Raises:
        EncoderError: if the name is unknown, the size does not fit or the weights cannot be had.
        MissingExtraError: if the model needs timm and it is not installed.

    Examples:
        >>> import torch
        >>> shots = torch.rand(2, 3, 64, 64)
        >>> encoder = build_encoder("filter_bank", image_size=64).fit(shots)
        >>> encoder.grid(64), tuple(encoder(shots).shape)
        ((8, 8), (2, 64, 256))
    """
    if name.startswith("timm:"):
        return TimmEncoder.from_name(name, weights=weights, image_size=image_size, seed=seed)
    if name != "filter_bank" and not _is_fpfh(name):
        raise EncoderError(
            f"unknown encoder {name!r}; there are 'filter_bank', 'timm:MODEL[,key=value...]' and 'fpfh[,key=value...]'"
        )
    if weights is not None:
        raise EncoderError(f"{name} has no weights to load, got weights={str(weights)!r}; leave them out")
    chosen: dict[str, Any] = {} if stride is None else {"stride": stride}
    encoder = FPFHEncoder.from_name(name, **chosen) if _is_fpfh(name) else FilterBankEncoder(seed=seed, **chosen)
    encoder.grid(image_size)
    return encoder


def _is_fpfh(name: str) -> bool:
    return name.partition(",")[0] == "fpfh"
