"""PatchCore: a memory bank thinned to a greedy coreset (Roth et al., Towards Total Recall, CVPR 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from protoad.ops import greedy_coreset
from protoad.scoring import TokenScore
from protoad_detectors.nearest_neighbour import NearestNeighbourReconstructor

__all__ = ["PatchCoreReconstructor", "PatchCoreScore"]


class PatchCoreReconstructor(NearestNeighbourReconstructor):
    """Keeps a tenth of the shots' tokens, chosen so that none is far from those kept; L2, one bank per modality.

    The coreset is chosen after a random projection to the width that keeps distances to within a factor of 1 +- .9
    (Johnson and Lindenstrauss), where tokens are wider; Gaussian here, sparse as published. Tokens are those of the
    encoder, without the mean over 3 x 3 of them that is published: a token beside the part would take in the table.

    Args:
        modalities: names of the banks.
        fraction: of the tokens that is kept.
        eps: distortion of the distances by the projection.
        seed: of the projection and the start of the coreset.
    """

    max_folds = 5  # a coreset is chosen for each

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb", "normals"),
        *,
        fraction: float = 0.1,
        eps: float = 0.9,
        seed: int = 0,
    ) -> None:
        if not 0 < fraction <= 1 or not 0 < eps < 1:
            raise ValueError(f"expected fraction in (0, 1] and eps in (0, 1), got {fraction} and {eps}")
        super().__init__("l2", modalities=modalities)
        self.fraction, self.eps, self.seed = fraction, eps, seed

    def own_score(self, seed: int = 0) -> TokenScore:
        return PatchCoreScore()

    def _select(self, tokens: Tensor) -> Tensor:
        count = max(1, round(self.fraction * len(tokens)))
        return tokens[greedy_coreset(self._project(tokens), count, seed=self.seed)]

    def _project(self, tokens: Tensor) -> Tensor:
        number, dim = tokens.shape
        width = max(1, math.ceil(4 * math.log(number) / (self.eps**2 / 2 - self.eps**3 / 3)))
        if dim <= width:
            return tokens
        generator = torch.Generator().manual_seed(self.seed)
        return tokens @ (torch.randn(dim, width, generator=generator) / width**0.5).to(tokens)


class PatchCoreScore(TokenScore):
    """The distance of a token from its nearest entry of the bank; of several modalities, the sum.

    As published, for the heatmap. The published score of a part, which weighs its worst token by how crowded the bank
    is around the entry nearest to it, is left out: here a part's score is the maximum of its heatmap, so that one
    threshold serves both.
    """

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {m: (tokens - reconstructions[m]).norm(dim=-1) for m, tokens in targets.items()}
        return {**scores, "fused": torch.stack(list(scores.values())).sum(0)}
