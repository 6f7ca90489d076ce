"""PaDiM: a Gaussian for each position (Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization, ICPR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from protoad.checkpoint import ShapedByData
from protoad.detection import Features, Reconstructor
from protoad.scoring import TokenScore

__all__ = ["PaDiMReconstructor", "PaDiMScore"]

_ENOUGH = 2  # shots that a position is seen in, for a mean and a covariance of its own


class PaDiMReconstructor(Reconstructor):
    """Rebuilds every token as the shots' mean at its position.

    A position that counts in fewer than two shots gets mean and covariance of all tokens that count.

    Args:
        dims: modality -> d.
        grid: tokens (down, across).
        channels: drawn at random from each modality for its own score; 100 as published for the smaller network.
        ridge: of its own score, see `PaDiMScore`.
        seed: of that draw.
    """

    def __init__(
        self, dims: Mapping[str, int], *, grid: tuple[int, int], channels: int = 100, ridge: float = 0.01, seed: int = 0
    ) -> None:
        super().__init__()
        self.channels, self.ridge, self.seed = channels, ridge, seed
        for m, dim in dims.items():
            self.register_buffer(f"mean_{m}", torch.zeros(grid[0] * grid[1], dim))

    def fit(self, shots: Features) -> PaDiMReconstructor:
        for modality, tokens in shots.tokens.items():
            self.get_buffer(f"mean_{modality}").copy_(_means(tokens, shots.mask))
        return self

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        return {m: self.get_buffer(f"mean_{m}").expand_as(t) for m, t in tokens.items()}

    def reconstruct_shots(self, shots: Features) -> dict[str, Tensor]:
        """Rebuilds each shot as the mean of the others, its copies left out with it."""
        others = _leave_one_out(torch.arange(len(shots.mask)) if shots.shot is None else shots.shot)
        return {m: torch.stack([_means(t[o], shots.mask[o]) for o in others]) for m, t in shots.tokens.items()}

    def own_score(self, seed: int = 0) -> PaDiMScore:
        return PaDiMScore(self.channels, self.ridge, seed=seed)


def _leave_one_out(shot: Tensor) -> list[Tensor]:
    """Which parts are of another shot (b) bool, for each; a single shot has to stand for itself."""
    others = shot != shot.unsqueeze(1)
    return list(others if others.any() else ~others)


def _means(tokens: Tensor, mask: Tensor) -> Tensor:
    """(n d) means of tokens (b n d) that count, by position where there are enough."""
    count = mask.sum(0).unsqueeze(-1)
    own = tokens.masked_fill(~mask.unsqueeze(-1), 0).sum(0) / count.clamp_min(1)
    return torch.where(count >= _ENOUGH, own, tokens[mask].mean(0))


class PaDiMScore(ShapedByData, TokenScore):
    """Mahalanobis length of the residual under the covariance of its position; of modalities together, stacked.

    Few shots leave the covariance of d channels singular: .01 of the identity is added to it, as published. So that
    this means the same for every encoder, tokens are first divided by the shots' root mean square. The inverse is kept
    as a factor of as many rows as there are shots: S^-1 = (I - F^T F) / ridge, exactly. Copies count as shots here: the
    spread by which the heatmaps are drawn comes out too small with them.

    Args:
        channels: drawn at random from each modality; all of those with fewer.
        ridge: added to the diagonal of the covariance.
        seed: of the draw.
    """

    def __init__(self, channels: int = 100, ridge: float = 0.01, *, seed: int = 0) -> None:
        super().__init__()
        self.channels, self.ridge, self.seed = channels, ridge, seed
        self.register_buffer("seen", torch.empty(0, dtype=torch.bool))  # (n) in enough shots
        for name in ("rgb", "normals", "fused"):
            for kind in ("scale", "factor", "pooled"):
                self.register_buffer(f"{kind}_{name}", torch.empty(0))
            self.register_buffer(f"drawn_{name}", torch.empty(0, dtype=torch.int64))

    def learn(
        self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor], token_mask: Tensor
    ) -> dict[str, Tensor]:
        for modality, tokens in targets.items():
            self.register_buffer(f"scale_{modality}", tokens[token_mask].square().mean().sqrt())
            shuffled = torch.randperm(tokens.shape[-1], generator=torch.Generator().manual_seed(self.seed))
            self.register_buffer(f"drawn_{modality}", shuffled[: self.channels].to(tokens.device))
        residuals, scores = self._residuals(targets, reconstructions), {}
        for name, values in self._groups(targets).items():
            lengths = []
            for shot, others in enumerate(_leave_one_out(torch.arange(len(token_mask)))):
                self._keep(name, values[others], token_mask[others])
                lengths.append(self._length(name, residuals[name][shot : shot + 1]))
            scores[name] = torch.cat(lengths)
            self._keep(name, values, token_mask)
        return scores

    def _keep(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Keeps the factors of values (b n d)."""
        count, kept = mask.sum(0), values[mask]
        own = (values - _means(values, mask)).masked_fill(~mask.unsqueeze(-1), 0)
        own = own / (count - 1).clamp_min(1).sqrt().unsqueeze(-1)
        pooled = (kept - kept.mean(0)) / max(len(kept) - 1, 1) ** 0.5
        self.register_buffer("seen", count >= _ENOUGH)
        self.register_buffer(f"factor_{name}", self._factor(own.movedim(0, 1)))
        self.register_buffer(f"pooled_{name}", self._factor(pooled))

    def _factor(self, rows: Tensor) -> Tensor:
        """F (... r d) of S = rows^T rows + ridge I, for rows (... r d)."""
        if rows.shape[-2] > rows.shape[-1]:
            rows = torch.linalg.qr(rows).R
        gram = rows @ rows.mT + self.ridge * torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(gram), rows, upper=False)

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._length(name, r) for name, r in self._residuals(targets, reconstructions).items()}

    def _length(self, name: str, residuals: Tensor) -> Tensor:
        """(b n) of residuals (b n d)."""
        own = (residuals.movedim(0, 1) @ self.get_buffer(f"factor_{name}").mT).movedim(0, 1)
        pooled = residuals @ self.get_buffer(f"pooled_{name}").mT
        explained = torch.where(self.get_buffer("seen"), own.square().sum(-1), pooled.square().sum(-1))
        return ((residuals.square().sum(-1) - explained).clamp_min(0) / self.ridge).sqrt()

    def _residuals(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._groups({m: t - reconstructions[m] for m, t in targets.items()})

    def _groups(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Channels drawn of each modality, at a common scale, and of all side by side."""
        drawn = {m: v[..., self.get_buffer(f"drawn_{m}")] / self.get_buffer(f"scale_{m}") for m, v in values.items()}
        return {**drawn, "fused": torch.cat(list(drawn.values()), dim=-1)}
