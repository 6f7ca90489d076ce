"""Parts in, heatmaps and scores out, around anything that reconstructs features. Knows no particular detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from protoad.data.prepare import Prepared
from protoad.encoders import Encoder, FeatureCache
from protoad.errors import DataError
from protoad.scoring import FUSED, ResidualScore, anomaly_map, image_score

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
        maps: modality -> (b y x) heatmap of that branch alone, and "fused", of all that were there.
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
        return self.pool(foreground if self.foreground else torch.ones_like(foreground))

    def pool(self, foreground: Tensor) -> Tensor:
        """Gives (b n) bool of foreground masks (b y x) bool, as `token_mask` does."""
        tokens = adaptive_max_pool2d(foreground.float().unsqueeze(1), self.grid).flatten(1) > 0
        return tokens | ~tokens.any(1, keepdim=True)

    def forward(self, parts: Sequence[Prepared], modalities: Sequence[str] | None = None) -> Features:
        """Gives the `Features` of prepared parts.

        Args:
            parts: what was seen.
            modalities: those to look at; default: all there are encoders for.

        Raises:
            DataError: for a modality without an encoder, or none at all.
        """
        chosen = list(self.encoders) if modalities is None else list(modalities)
        if not chosen or any(m not in self.encoders for m in chosen):
            raise DataError(
                f"modalities: expected some of {', '.join(self.encoders)}, got {', '.join(chosen) or 'none'}"
            )
        tokens = {m: self.cache.encode(self.encoders[m], _images(parts, m)) for m in chosen}
        return Features(tokens, self.token_mask(parts))


def _images(parts: Sequence[Prepared], modality: str) -> Tensor:
    return torch.stack([getattr(part, modality) for part in parts])


class Detector(nn.Module):
    """A reconstructor, a score of what it leaves over, and heatmaps on one scale.

    Fitted on two modalities it judges parts of which one is missing, too: by a score fitted to what the reconstructor
    makes of the other alone, brought to the scale of both.

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
    of_two: Tensor

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
        self.alone: Mapping[str, ResidualScore] = nn.ModuleDict(  # type: ignore[assignment]
            {m: deepcopy(score) for m in _ALONE}
        )
        for name in ("floor", "typical", "extreme"):
            self.register_buffer(name, torch.zeros(len(_SLOTS)))
        self.register_buffer("of_two", torch.zeros((), dtype=torch.bool))  # whether fitted to two modalities
        self._of_two = False  # the same as a plain bool: reading a buffer in forward would break tracing and export
        self.register_load_state_dict_post_hook(_recall_of_two)

    def fit(self, shots: Features) -> Detector:
        """Fits the reconstructor, then the score, then the scale of the heatmaps, on good parts alone."""
        self.reconstructor.fit(shots)
        return self.fit_score(shots)

    @torch.no_grad()
    def fit_score(self, shots: Features) -> Detector:
        """Fits the score and the scale of the heatmaps for a reconstructor that is fitted already."""
        self.reconstructor.eval()
        self._fit_one(self.score, shots, _SLOTS)
        self._of_two = len(shots.tokens) == 2
        self.of_two.fill_(self._of_two)
        if self._of_two:
            for modality in shots.tokens:
                alone = Features({modality: shots.tokens[modality]}, shots.mask)
                self._fit_one(self.alone[modality], alone, {FUSED: _SLOTS[_ALONE[modality]]})
        return self

    def _fit_one(self, score: ResidualScore, shots: Features, slots: Mapping[str, int]) -> None:
        """Fits one score, and the scale of its heatmaps."""
        rebuilt = self.reconstructor.reconstruct_shots(shots)
        score.fit(shots.tokens, rebuilt, shots.mask)
        found = {slots[name]: values for name, values in score.shot_scores.items() if name in slots}
        for slot, values in found.items():
            self.floor[slot] = values[shots.mask].min()
            self.typical[slot] = values[shots.mask].median()
            self.extreme[slot] = self._map(values, shots.mask, slot).max()

    @torch.no_grad()
    def forward(self, features: Features) -> Prediction:
        """Gives the `Prediction` for the features of some parts.

        Raises:
            RuntimeError: if the detector was not fitted to these modalities.
        """
        rebuilt = self.reconstructor(features.tokens, features.mask)
        if self._of_two and len(features.tokens) == 1:
            maps = self._maps_of_one(features, rebuilt)
        else:
            scores = self.score(features.tokens, rebuilt)
            maps = {name: self._map(values, features.mask, _SLOTS[name]) for name, values in scores.items()}
        return Prediction(image_score(maps[FUSED], top_fraction=self.top_fraction), maps)

    def _maps_of_one(self, features: Features, rebuilt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Heatmaps of the one modality that is there, brought to the scale of both: the typical and the worst spot of
        the good parts come to lie where they lie with both.
        """
        (modality,) = features.tokens
        scores, slot = self.alone[modality](features.tokens, rebuilt), _SLOTS[_ALONE[modality]]
        heatmap = self._map(scores[FUSED], features.mask, slot)
        low, high, fused = self.typical[slot], self.extreme[slot], _SLOTS[FUSED]
        gain = (self.extreme[fused] - self.typical[fused]) / (high - low).clamp_min(1e-12)
        return dict.fromkeys((modality, FUSED), self.typical[fused] + gain * (heatmap - low))

    def heatmap_range(self, name: str = FUSED) -> tuple[float, float]:
        """Gives (low, high), the one scale all heatmaps of this detector are drawn on.

        Low is the typical score of a good surface; high lies as far above the worst spot of any shot as that
        spot lies above the typical score, so that good parts stay in the lower half.
        """
        slot = _SLOTS[name]
        low, top = float(self.typical[slot]), float(self.extreme[slot])
        return low, top + (top - low) + 1e-6

    def _map(self, values: Tensor, mask: Tensor, slot: int) -> Tensor:
        """Heatmap of scores (b n); a token that does not count gets the lowest score of any good one."""
        values = torch.where(mask, values, self.floor[slot])
        return anomaly_map(values, self.grid, size=self.image_size, sigma=self.sigma)


def _recall_of_two(module: nn.Module, _keys: object) -> None:
    module._of_two = bool(module.get_buffer("of_two"))  # type: ignore[assignment]


_ALONE = {"rgb": "rgb alone", "normals": "normals alone"}
_SLOTS = {"rgb": 0, "normals": 1, FUSED: 2, "rgb alone": 3, "normals alone": 4}
