"""A Gaussian on the features: every token is rebuilt as the mean of the shots, and the score does the rest.

Under the whitened score this is the Mahalanobis distance of one Gaussian over both modalities, the simplest model
of normality there is. Nothing may be credited to prototypes that this reaches too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from protoad.detection import Features, Reconstructor

__all__ = ["GaussianReconstructor"]


class GaussianReconstructor(Reconstructor):
    """Rebuilds every token as the mean of the shots' kept tokens.

    Args:
        dims: modality -> d of its tokens.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        for modality, dim in dims.items():
            self.register_buffer(f"mean_{modality}", torch.zeros(dim))

    def fit(self, shots: Features) -> GaussianReconstructor:
        for modality, tokens in shots.tokens.items():
            self.get_buffer(f"mean_{modality}").copy_(tokens[shots.mask].mean(0))
        return self

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        return {m: self.get_buffer(f"mean_{m}").expand_as(t) for m, t in tokens.items()}
