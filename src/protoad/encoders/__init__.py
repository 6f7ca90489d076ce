"""Frozen feature extractors: images to tokens, computed once.

`build_encoder("filter_bank")` needs no weights; `build_encoder("timm:MODEL")` takes any ViT or CNN of timm.
"""

from __future__ import annotations

from pathlib import Path

from protoad.encoders.base import Encoder
from protoad.encoders.cache import FeatureCache
from protoad.encoders.filter_bank import FilterBankEncoder
from protoad.encoders.timm_backbone import TimmEncoder
from protoad.errors import EncoderError

__all__ = ["Encoder", "FeatureCache", "FilterBankEncoder", "TimmEncoder", "build_encoder"]


def build_encoder(name: str, *, weights: str | Path | None = None, image_size: int = 224, seed: int = 0) -> Encoder:
    """A frozen encoder by name.

    Args:
        name: "filter_bank" or "timm:MODEL[,key=value...]".
        weights: weight file of a timm model; None fetches the published weights, "random" initialises at random.
        image_size: side of the square images it will see, pixels.
        seed: of the random frequencies (filter_bank) or of random weights.

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
    if name == "filter_bank":
        if weights is not None:
            raise EncoderError(f"filter_bank has no weights to load, got weights={str(weights)!r}; leave them out")
        encoder = FilterBankEncoder(seed=seed)
        encoder.grid(image_size)
        return encoder
    if name.startswith("timm:"):
        return TimmEncoder.from_name(name, weights=weights, image_size=image_size, seed=seed)
    raise EncoderError(f"unknown encoder {name!r}; there are 'filter_bank' and 'timm:MODEL[,key=value...]'")
