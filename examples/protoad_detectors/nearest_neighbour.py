"""A patch memory bank: every token is rebuilt as its nearest neighbour among the shots' tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from protoad.detection import Features, Reconstructor
from protoad.ops import unit

__all__ = ["NearestNeighbourReconstructor"]


class NearestNeighbourReconstructor(Reconstructor):
    """Keeps all tokens of the shots that count, one bank per modality.

    Args:
        metric: what "nearest" means: "cosine" or "l2".
    """

    def __init__(self, metric: Literal["cosine", "l2"] = "cosine") -> None:
        super().__init__()
        self.metric = metric
        self.banks: dict[str, Tensor] = {}

    def fit(self, shots: Features) -> NearestNeighbourReconstructor:
        self.banks = {m: tokens[shots.mask] for m, tokens in shots.tokens.items()}
        return self

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        return {m: torch.stack([self._nearest(part, self.banks[m]) for part in t]) for m, t in tokens.items()}

    def reconstruct_shots(self, shots: Features) -> dict[str, Tensor]:
        """Rebuilds each shot from the others: a token is no neighbour of itself."""
        if len(shots.mask) == 1:
            return self(shots.tokens, shots.mask)
        rebuilt: dict[str, list[Tensor]] = {m: [] for m in shots.tokens}
        for index in range(len(shots.mask)):
            others = torch.arange(len(shots.mask)) != index
            for modality, tokens in shots.tokens.items():
                bank = tokens[others][shots.mask[others]]
                rebuilt[modality].append(self._nearest(tokens[index], bank))
        return {m: torch.stack(parts) for m, parts in rebuilt.items()}

    def _nearest(self, tokens: Tensor, bank: Tensor) -> Tensor:
        """(n d) -> (n d), the entries of the bank (m d) closest to the tokens."""
        if self.metric == "cosine":
            return bank[(unit(tokens) @ unit(bank).mT).argmax(-1)]
        return bank[torch.cdist(tokens, bank).argmin(-1)]
