"""PatchCore: a memory bank thinned to a greedy coreset (Roth et al., Towards Total Recall, CVPR 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from protoad.ops import greedy_coreset
from protoad.scoring import TokenScore
from protoad_detectors.nearest_neighbour import NearestNeighbourReconstructor

__all__ = ["PatchCoreReconstructor", "PatchCoreScore", "nearest_weights"]


class PatchCoreReconstructor(NearestNeighbourReconstructor):
    """Keeps a tenth of the shots' tokens, chosen so that none is far from those kept; L2, one bank per modality.

    The coreset is chosen after a random projection to the width that keeps distances to within a factor of 1 +- .9
    (Johnson and Lindenstrauss), where tokens are wider; Gaussian here, sparse as published. The heatmap of several
    modalities is the sum of theirs.

    Args:
        modalities: names of the banks.
        fraction: of the tokens that is kept.
        eps: distortion of the distances by the projection.
        neighbours: of the reweighting in its own score, see `PatchCoreScore`.
        seed: of the projection and the start of the coreset.
    """

    max_folds = 5  # a coreset is chosen for each

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb", "normals"),
        *,
        fraction: float = 0.1,
        eps: float = 0.9,
        neighbours: int = 3,
        seed: int = 0,
    ) -> None:
        if not 0 < fraction <= 1 or not 0 < eps < 1:
            raise ValueError(f"expected fraction in (0, 1] and eps in (0, 1), got {fraction} and {eps}")
        super().__init__("l2", modalities=modalities)
        self.fraction, self.eps, self.neighbours, self.seed = fraction, eps, neighbours, seed

    def own_score(self, seed: int = 0) -> PatchCoreScore:
        return PatchCoreScore(self)

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
    """The distance of a token from its nearest entry of the bank, weighted by how crowded it is around that entry.

    As published the weight is given to the worst token of an image, and only in the score of the image. Here every
    token has its own, so that the score of a part stays the maximum of its heatmap.

    Args:
        reconstructor: with the banks, and the number of `neighbours` of the entry that count, itself among them; 1 and
            less leaves the distances as they are.
    """

    def __init__(self, reconstructor: PatchCoreReconstructor) -> None:
        super().__init__()
        self.reconstructor = (reconstructor,)

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {}
        for modality, tokens in targets.items():
            distance = (tokens - reconstructions[modality]).norm(dim=-1)
            bank, count = self.reconstructor[0].get_buffer(f"bank_{modality}"), self.reconstructor[0].neighbours
            if min(count, len(bank)) > 1:
                pairs = zip(tokens, reconstructions[modality], strict=True)
                distance = distance * torch.stack([nearest_weights(t, r, bank, count) for t, r in pairs])
            scores[modality] = distance
        return {**scores, "fused": torch.stack(list(scores.values())).sum(0)}


def nearest_weights(tokens: Tensor, nearest: Tensor, bank: Tensor, neighbours: int) -> Tensor:
    """Gives w = 1 - exp(|t - m| / sqrt d) / sum_j exp(|t - m_j| / sqrt d) of each token, 0 at least.

    Args:
        tokens: (n d) t.
        nearest: (n d) m, the entries of the bank they were matched with.
        bank: (k d).
        neighbours: how many m_j of the bank nearest to m there are, the first of which, m itself, is left out.

    Returns:
        (n).
    """
    among = torch.cdist(nearest, bank).topk(min(neighbours, len(bank)), largest=False).indices[:, 1:]
    scale = tokens.shape[-1] ** 0.5
    own = (tokens - nearest).norm(dim=-1) / scale
    others = (tokens.unsqueeze(1) - bank[among]).norm(dim=-1) / scale
    return (1 - (own - others.logsumexp(-1)).exp()).clamp_min(0)
