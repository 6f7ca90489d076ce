"""M3DM: memory banks of two modalities and of their fusion, weighed by a one-class SVM (Wang et al., Multimodal
Industrial Anomaly Detection via Hybrid Fusion, CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from protoad.detection import Features
from protoad.errors import ConfigError
from protoad.ops import unit
from protoad.scoring import TokenScore
from protoad_detectors.patchcore import PatchCoreReconstructor
from protoad_detectors.trained import TrainedReconstructor, seeded

__all__ = ["M3DMReconstructor", "M3DMScore", "contrastive_loss", "one_class_weights"]


class M3DMReconstructor(TrainedReconstructor):
    """Rebuilds tokens from a coreset of each modality, as PatchCore; its own score asks a third bank, of fused tokens.

    Two networks fuse: they learn to give one vector for both modalities of a place, and others for other places (patch-
    wise contrastive loss); a fused token is what both give, side by side. Trained for 10 epochs of the shots, not 3 of
    whole data sets, by Adam, not AdamW; hidden layers as wide as a token, not 4 times; no heads; temperature .1, not 1.

    Args:
        dims: d of "rgb" and "normals".
        fraction: of the tokens that the banks keep.
        epochs: passes over the shots.
        lr: learning rate.
        seed: of weights, the order of the shots, and the banks.

    Raises:
        ConfigError: for one modality.
    """

    needs_both = True

    def __init__(
        self, dims: Mapping[str, int], *, fraction: float = 0.1, epochs: int = 10, lr: float = 1e-3, seed: int = 0
    ) -> None:
        super().__init__(dims, epochs=epochs, lr=lr, seed=seed)
        if dims.keys() != {"rgb", "normals"}:
            raise ConfigError(f"dims: expected rgb and normals, which are fused, got {list(dims)}")
        with seeded(seed):
            self.project = nn.ModuleDict(
                {
                    m: nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.GELU(), nn.Linear(d, d))
                    for m, d in dims.items()
                }
            )
        self.banks = PatchCoreReconstructor((*dims, "fused"), fraction=fraction, seed=seed)

    def fit(self, shots: Features) -> M3DMReconstructor:
        self.history = []
        self.minimise(shots, [self.project], self._loss)
        with torch.no_grad():
            self.banks.fit(Features({**shots.tokens, "fused": self.fuse(shots.tokens)}, shots.mask))
        return self

    def _loss(self, tokens: dict[str, Tensor], mask: Tensor) -> Tensor:
        first, second = (self.project[m](t) for m, t in tokens.items())
        return torch.stack([contrastive_loss(*one) for one in zip(first, second, mask, strict=True)]).mean()

    def fuse(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Gives fused tokens (b n 2d)."""
        scaled = {m: t / self.get_buffer(f"scale_{m}") for m, t in tokens.items()}
        return torch.cat([self.project[m](t) for m, t in scaled.items()], dim=-1)

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        return self.banks(tokens, token_mask)

    def reconstruct_shots(self, shots: Features) -> dict[str, Tensor]:
        """Rebuilds some shots from the others, as the banks do."""
        return self.banks.reconstruct_shots(shots)

    def own_score(self, seed: int = 0) -> M3DMScore:
        return M3DMScore(self)


class M3DMScore(TokenScore):
    """The distances from the three banks, weighed by a one-class SVM on those of the shots.

    Each in units of its own bank's deviation (the published code takes that of the rgb bank for all) and times the
    published factors: normals 1, rgb .1, fused 1. The published score of a part, which reweights three maxima and has
    an SVM of its own, is left out, as by `PatchCoreScore`. In the fused bank a copy counts as a shot.
    """

    weights: Tensor

    def __init__(self, reconstructor: M3DMReconstructor, *, nu: float = 0.5) -> None:
        super().__init__()
        self.reconstructor, self.nu = (reconstructor,), nu
        self.factors = {"rgb": 0.1, "normals": 1.0, "fused": 1.0}
        self.register_buffer("weights", torch.ones(len(self.factors)))

    def learn(
        self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor], token_mask: Tensor
    ) -> dict[str, Tensor]:
        fused = Features({"fused": self.reconstructor[0].fuse(targets)}, token_mask)
        distances = self._distances(targets, reconstructions, self.reconstructor[0].banks.reconstruct_shots(fused))
        self.weights.copy_(one_class_weights(torch.stack(list(distances.values()), dim=-1)[token_mask], self.nu))
        return self._weighed(distances)

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fused = self.reconstructor[0].fuse(targets)
        nearest = self.reconstructor[0].banks({"fused": fused}, torch.ones_like(fused[..., 0], dtype=torch.bool))
        return self._weighed(self._distances(targets, reconstructions, nearest))

    def _distances(
        self, targets: Mapping[str, Tensor], rebuilt: Mapping[str, Tensor], nearest: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        pairs = {m: (targets[m], rebuilt[m]) for m in ("rgb", "normals")}
        pairs["fused"] = (self.reconstructor[0].fuse(targets), nearest["fused"])
        units = {m: self.reconstructor[0].banks.get_buffer(f"bank_{m}").std().clamp_min(1e-12) for m in pairs}
        return {m: self.factors[m] * (t - r).norm(dim=-1) / units[m] for m, (t, r) in pairs.items()}

    def _weighed(self, distances: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fused = torch.stack(list(distances.values()), dim=-1) @ self.weights
        return {"rgb": distances["rgb"], "normals": distances["normals"], "fused": fused}


def contrastive_loss(first: Tensor, second: Tensor, token_mask: Tensor, temperature: float = 0.1) -> Tensor:
    """Gives InfoNCE of two views (n d) of a part's places that count, (n): each has to find its other among all."""
    logits = unit(first[token_mask]) @ unit(second[token_mask]).mT / temperature
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def one_class_weights(points: Tensor, nu: float = 0.5, *, n_iters: int = 1000) -> Tensor:
    """Gives w (k) of the linear one-class SVM on points (n k), by Frank-Wolfe steps on its dual.

    w is the shortest vector among the weighted means of points in which none weighs more than 1 / (nu n): the gradient
    step goes to the mean of the share nu of points that lie lowest along w.
    """
    data = points.double()
    share = max(nu * len(data), 1.0)
    masses = (share - torch.arange(len(data), device=data.device)).clamp(0, 1) / share  # of the lowest, the next, ...
    weights = data.mean(0)
    for _ in range(n_iters):
        lowest = masses.to(data) @ data[(data @ weights).argsort(stable=True)]
        gap = weights - lowest
        if weights @ gap <= 1e-7 * weights.square().sum():
            break
        weights = weights - (weights @ gap / gap.square().sum()).clamp(0, 1) * gap
    return weights.to(points.dtype)
