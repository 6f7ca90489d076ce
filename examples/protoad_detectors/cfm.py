"""CFM: each modality is predicted from the other (Costanzino et al., Multimodal Industrial Anomaly Detection by
Crossmodal Feature Mapping, CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from protoad.detection import Features
from protoad.errors import ConfigError
from protoad.losses import cosine_loss
from protoad.ops import unit
from protoad.scoring import TokenScore
from protoad_detectors.trained import TrainedReconstructor, counted, seeded

__all__ = ["CFMReconstructor", "CFMScore"]

_OTHER = {"rgb": "normals", "normals": "rgb"}


class CFMReconstructor(TrainedReconstructor):
    """Two networks of three linear layers and GELU predict the tokens of one modality from the other's.

    Trained with the cosine distance, by Adam at 1e-3 over 50 epochs as published, but with one shot in a batch, not 4
    parts; normals in place of point features.

    Args:
        dims: d of "rgb" and "normals".
        epochs: passes over the shots.
        lr: learning rate.
        seed: of weights and the order of the shots.

    Raises:
        ConfigError: for one modality.
    """

    needs_both = True

    def __init__(self, dims: Mapping[str, int], *, epochs: int = 50, lr: float = 1e-3, seed: int = 0) -> None:
        super().__init__(dims, epochs=epochs, lr=lr, seed=seed)
        if dims.keys() != _OTHER.keys():
            raise ConfigError(f"dims: expected rgb and normals, which are predicted from each other, got {list(dims)}")
        with seeded(seed):
            self.predict = nn.ModuleDict({m: _mapping(dims[_OTHER[m]], dims[m]) for m in dims})

    def fit(self, shots: Features) -> CFMReconstructor:
        self.history = []
        self.minimise(shots, [self.predict], self._loss)
        return self

    def _loss(self, tokens: dict[str, Tensor], mask: Tensor) -> Tensor:
        tokens, mask = counted(tokens, mask)
        predicted = self._predict(tokens)
        return torch.stack([cosine_loss(predicted[m], tokens[m], token_mask=mask) for m in tokens]).sum()

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        return self.unscaled(self._predict(self.scaled(tokens, token_mask)))

    def _predict(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.predict[m](tokens[_OTHER[m]]) for m in tokens}

    def own_score(self, seed: int = 0) -> CFMScore:
        return CFMScore()


def _mapping(given: int, wanted: int) -> nn.Sequential:
    middle = (given + wanted) // 2
    return nn.Sequential(
        nn.Linear(given, middle), nn.GELU(), nn.Linear(middle, middle), nn.GELU(), nn.Linear(middle, wanted)
    )


class CFMScore(TokenScore):
    """The L2 distances of unit tokens from their unit predictions, multiplied: both modalities have to disagree.

    As published, but for the division of each map by its own mean, which leaves no threshold that holds for all parts.
    """

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {m: (unit(t) - unit(reconstructions[m])).norm(dim=-1) for m, t in targets.items()}
        return {**scores, "fused": torch.stack(list(scores.values())).prod(0)}
