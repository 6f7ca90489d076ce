"""A patch memory bank: every token is rebuilt as its nearest neighbour among the shots' tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from protoad.checkpoint import ShapedByData
from protoad.detection import Features, Reconstructor
from protoad.ops import unit

__all__ = ["NearestNeighbourReconstructor"]


class NearestNeighbourReconstructor(ShapedByData, Reconstructor):
    """Keeps all tokens of the shots that count, one bank per modality.

    Args:
        metric: what "nearest" means: "cosine" or "l2".
        modalities: that a checkpoint may hold banks of.
    """

    max_folds: int | None = None  # at most so many groups of shots are rebuilt from the others; None: each on its own

    def __init__(
        self, metric: Literal["cosine", "l2"] = "cosine", *, modalities: Sequence[str] = ("rgb", "normals")
    ) -> None:
        super().__init__()
        self.metric = metric
        for modality in modalities:
            self.register_buffer(f"bank_{modality}", torch.empty(0))

    def fit(self, shots: Features) -> NearestNeighbourReconstructor:
        for modality, tokens in shots.tokens.items():
            self.register_buffer(f"bank_{modality}", self._select(tokens[shots.mask]))
        return self

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        banks = {m: self.get_buffer(f"bank_{m}") for m in tokens}
        return {m: torch.stack([self._nearest(part, banks[m]) for part in t]) for m, t in tokens.items()}

    def reconstruct_shots(self, shots: Features) -> dict[str, Tensor]:
        """Rebuilds each shot from the others: a token is no neighbour of itself, nor of a copy of its part."""
        shot = torch.arange(len(shots.mask)) if shots.shot is None else shots.shot
        number = len(shot.unique())
        if number == 1:
            return self(shots.tokens, shots.mask)
        rebuilt = {m: torch.empty_like(tokens) for m, tokens in shots.tokens.items()}
        folds = min(number, self.max_folds or number)
        for fold in range(folds):
            others = shot % folds != fold
            for modality, tokens in shots.tokens.items():
                bank = self._select(tokens[others][shots.mask[others]])
                for index in (~others).nonzero().flatten():
                    rebuilt[modality][index] = self._nearest(tokens[index], bank)
        return rebuilt

    def _select(self, tokens: Tensor) -> Tensor:
        """What a bank keeps of tokens (m d): here, all."""
        return tokens

    def _nearest(self, tokens: Tensor, bank: Tensor) -> Tensor:
        """(n d) -> (n d), the entries of the bank (m d) closest to the tokens."""
        if self.metric == "cosine":
            return bank[(unit(tokens) @ unit(bank).mT).argmax(-1)]
        return bank[torch.cdist(tokens, bank).argmin(-1)]
