"""BTF: one memory bank of colours and geometry side by side (Horwitz and Hoshen, Back to the Feature, CVPRW 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from protoad.detection import Features
from protoad.scoring import TokenScore
from protoad_detectors.patchcore import PatchCoreReconstructor

__all__ = ["BTFReconstructor", "BTFScore"]

_JOINT = "joint"


class BTFReconstructor(PatchCoreReconstructor):
    """PatchCore on tokens of all modalities joined: a colour is matched only together with the shape it came with.

    BTF is its name with FPFH as the encoder of the normals. As published the modalities are joined as they are, so the
    one whose numbers are large decides: FPFH's histograms add up to 600.

    Args:
        dims: modality -> d of its tokens.
        fraction: of the tokens that is kept.
        seed: of the coreset.
    """

    needs_both = True

    def __init__(self, dims: Mapping[str, int], *, fraction: float = 0.1, seed: int = 0) -> None:
        super().__init__((_JOINT,), fraction=fraction, seed=seed)
        self.dims = dict(dims)

    def fit(self, shots: Features) -> BTFReconstructor:
        super().fit(shots._replace(tokens=self.join(shots.tokens)))
        return self

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        return self._part(super().forward(self.join(tokens), token_mask))

    def reconstruct_shots(self, shots: Features) -> dict[str, Tensor]:
        """Rebuilds some shots from the others."""
        return self._part(super().reconstruct_shots(shots._replace(tokens=self.join(shots.tokens))))

    def own_score(self, seed: int = 0) -> BTFScore:
        return BTFScore()

    def join(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the tokens of all modalities as one, (b n d) of the sum of their widths."""
        return {_JOINT: torch.cat([tokens[m] for m in self.dims], dim=-1)}

    def _part(self, joined: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.dims, joined[_JOINT].split(list(self.dims.values()), dim=-1), strict=True))


class BTFScore(TokenScore):
    """The distance of the joined tokens; of one modality, its share of it. That of a part is as `PatchCoreScore`'s."""

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {m: (tokens - reconstructions[m]).norm(dim=-1) for m, tokens in targets.items()}
        return {**scores, "fused": torch.stack(list(scores.values())).norm(dim=0)}
