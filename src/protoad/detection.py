"""Parts in, heatmaps and scores out, around anything that reconstructs features. Knows no particular detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from protoad.data.prepare import Prepared
from protoad.encoders import Encoder, FeatureCache
from protoad.errors import DataError
from protoad.scoring import ResidualScore, anomaly_map, image_score

__all__ = ["Detector", "FeatureExtractor", "Features", "Prediction", "Reconstructor"]


class Features(NamedTuple):
    """What encoders saw of some parts.

    Attributes:
        tokens: modality ("rgb", "normals") -> (b n d).
        mask: (b n) bool, True for tokens that count.
    """

    tokens: dict[str, Tensor]
    mask: Tensor

    def pick(self, indices: Tensor) -> Features:
        """Gives the features of some of the parts."""
        return Features({m: t[indices] for m, t in self.tokens.items()}, self.mask[indices])


class Prediction(NamedTuple):
    """What a detector says of some parts.

    Attributes:
        score: (b), larger is more anomalous.
        maps: modality -> (b y x) heatmap of that branch alone, and "fused".
    """

    score: Tensor
    maps: dict[str, Tensor]


class Reconstructor(nn.Module):
    """Base of what a detector is made of: rebuilds tokens as a good part would have had them."""

    def fit(self, shots: Features) -> Reconstructor:
        """Learns from the features of good parts; returns itself."""
        raise NotImplementedError

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        """Gives modality -> (b n d) reconstructions of tokens (b n d), with token_mask (b n)."""
        raise NotImplementedError

    def reconstruct_shots(self, shots: Features) -> dict[str, Tensor]:
        """Gives the reconstruction of the good parts themselves, each without its own memory where there is one."""
        return self(shots.tokens, shots.mask)


class FeatureExtractor(nn.Module):
    """Frozen encoders of one or two modalities, and the mask of the tokens that count.

    Args:
        encoders: modality ("rgb" and / or "normals", fields of `Prepared`) -> encoder.
        image_size: side of the square images, pixels.
        foreground: whether only tokens with a foreground pixel count; otherwise all do.
        cache: where features are kept; each image is encoded once.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        *,
        image_size: int,
        foreground: bool = True,
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        self.encoders: Mapping[str, Encoder] = nn.ModuleDict(encoders)  # type: ignore[assignment]
        self.image_size, self.foreground = image_size, foreground
        self.cache = FeatureCache() if cache is None else cache
        grids = {m: encoder.grid(image_size) for m, encoder in encoders.items()}
        if len(set(grids.values())) != 1:
            raise DataError(f"encoders: expected one token grid for all modalities, got {grids}")
        self.grid = next(iter(grids.values()))

    def fit(self, parts: Sequence[Prepared]) -> FeatureExtractor:
        """Gives the encoders the statistics of the shots; pretrained ones take none."""
        mask = self.token_mask(parts)
        for modality, encoder in self.encoders.items():
            encoder.fit(_images(parts, modality), mask)
        return self

    def token_mask(self, parts: Sequence[Prepared]) -> Tensor:
        """Gives (b n) bool: a token counts if any of its pixels is foreground. A part of which none is counts whole."""
        foreground = torch.stack([part.foreground for part in parts])
        if not self.foreground:
            foreground = torch.ones_like(foreground)
        tokens = adaptive_max_pool2d(foreground.float().unsqueeze(1), self.grid).flatten(1) > 0
        return tokens | ~tokens.any(1, keepdim=True)

    def forward(self, parts: Sequence[Prepared]) -> Features:
        """Gives the `Features` of prepared parts."""
        tokens = {m: self.cache.encode(encoder, _images(parts, m)) for m, encoder in self.encoders.items()}
        return Features(tokens, self.token_mask(parts))


def _images(parts: Sequence[Prepared], modality: str) -> Tensor:
    return torch.stack([getattr(part, modality) for part in parts])


class Detector(nn.Module):
    """A reconstructor, a score of what it leaves over, and heatmaps on one scale.

    Args:
        reconstructor: any `Reconstructor`.
        score: how its residuals are scored.
        grid: tokens (down, across).
        image_size: side of the heatmaps, pixels.
        sigma: blur of the heatmaps, pixels.
        top_fraction: share of the pixels whose mean is the score of the part; 0 takes the maximum.
    """

    floor: Tensor
    typical: Tensor
    extreme: Tensor

    def __init__(
        self,
        reconstructor: Reconstructor,
        score: ResidualScore,
        *,
        grid: tuple[int, int],
        image_size: int,
        sigma: float = 4.0,
        top_fraction: float = 0.0,
    ) -> None:
        super().__init__()
        self.reconstructor, self.score, self.grid = reconstructor, score, grid
        self.image_size, self.sigma, self.top_fraction = image_size, sigma, top_fraction
        for name in ("floor", "typical", "extreme"):
            self.register_buffer(name, torch.zeros(3))  # rgb, normals, fused

    def fit(self, shots: Features) -> Detector:
        """Fits the reconstructor, then the score, then the scale of the heatmaps, on good parts alone."""
        self.reconstructor.fit(shots)
        return self.fit_score(shots)

    @torch.no_grad()
    def fit_score(self, shots: Features) -> Detector:
        """Fits the score and the scale of the heatmaps for a reconstructor that is fitted already."""
        self.reconstructor.eval()
        rebuilt = self.reconstructor.reconstruct_shots(shots)
        self.score.fit(shots.tokens, rebuilt, shots.mask)
        scores = self.score.shot_scores
        for slot, values in self._slots(scores):
            self.floor[slot] = values[shots.mask].min()
            self.typical[slot] = values[shots.mask].median()
        for slot, maps in self._slots(self._maps(scores, shots.mask)):
            self.extreme[slot] = maps.max()
        return self

    @torch.no_grad()
    def forward(self, features: Features) -> Prediction:
        """Gives the `Prediction` for the features of some parts."""
        rebuilt = self.reconstructor(features.tokens, features.mask)
        maps = self._maps(self.score(features.tokens, rebuilt), features.mask)
        return Prediction(image_score(maps["fused"], top_fraction=self.top_fraction), maps)

    def heatmap_range(self, name: str = "fused") -> tuple[float, float]:
        """Gives (low, high), the one scale all heatmaps of this detector are drawn on.

        Low is the typical score of a good surface; high lies as far above the worst spot of any shot as that
        spot lies above the typical score, so that good parts stay in the lower half.
        """
        slot = _SLOTS[name]
        low, top = float(self.typical[slot]), float(self.extreme[slot])
        return low, top + (top - low) + 1e-6

    def _maps(self, scores: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Heatmaps; a token that does not count gets the lowest score of any good one."""
        maps = {}
        for name, values in scores.items():
            values = torch.where(mask, values, self.floor[_SLOTS[name]])
            maps[name] = anomaly_map(values, self.grid, size=self.image_size, sigma=self.sigma)
        return maps

    @staticmethod
    def _slots(named: Mapping[str, Tensor]) -> list[tuple[int, Tensor]]:
        return [(_SLOTS[name], value) for name, value in named.items()]


_SLOTS = {"rgb": 0, "normals": 1, "fused": 2}
