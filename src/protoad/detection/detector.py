"""Heatmaps and scores around anything that reconstructs features. Knows no particular detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protoad.detection.features import Features
from protoad.errors import DataError
from protoad.scoring import FUSED, ResidualScore, TokenScore, anomaly_map, image_score

__all__ = ["Detector", "Prediction", "Reconstructor"]


class Prediction(NamedTuple):
    """What a detector says of some parts.

    Attributes:
        score: (b), larger is more anomalous.
        maps: modality -> (b y x) heatmap of that branch alone, and "fused", of all that were there.
    """

    score: Tensor
    maps: dict[str, Tensor]

    def cpu(self) -> Prediction:
        """Gives the same on the CPU."""
        return Prediction(self.score.cpu(), {name: heatmap.cpu() for name, heatmap in self.maps.items()})


class Reconstructor(nn.Module):
    """Base of what a detector is made of: rebuilds tokens as a good part would have had them.

    Attributes:
        needs_both: whether it says nothing of one modality without the other.
        history: what training reported, a dict per epoch; empty where nothing is trained.
    """

    needs_both: bool = False
    history: Sequence[dict[str, float]] = ()

    def fit(self, shots: Features) -> Reconstructor:
        """Learns from the features of good parts; returns itself."""
        raise NotImplementedError

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        """Gives modality -> (b n d) reconstructions of tokens (b n d), with token_mask (b n)."""
        raise NotImplementedError

    def reconstruct_shots(self, shots: Features) -> dict[str, Tensor]:
        """Gives the reconstruction of the good parts themselves, each without its own memory where there is one."""
        return self(shots.tokens, shots.mask)

    def own_score(self, seed: int = 0) -> TokenScore:
        """Gives a score, not fitted yet, as this reconstructor's authors define it: the cosine distance, unless said.

        One that asks its reconstructor for more than reconstructions keeps it in a tuple, out of its own parameters.

        Args:
            seed: of whatever it draws.
        """
        return ResidualScore("cosine", seed=seed)


class Detector(nn.Module):
    """A reconstructor, a score of what it leaves over, and heatmaps on one scale.

    Fitted on two modalities it judges parts of which one is missing, too: by a score fitted to what the reconstructor
    makes of the other alone, brought to the scale of both. So it does with single tokens whose normals are guessed.
    Around a reconstructor that needs both modalities it does neither.

    Args:
        reconstructor: any `Reconstructor`.
        score: how its residuals are scored, such as a `ResidualScore`, or the reconstructor's own.
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
        score: TokenScore,
        *,
        grid: tuple[int, int],
        image_size: int,
        sigma: float = 4.0,
        top_fraction: float = 0.0,
    ) -> None:
        super().__init__()
        self.reconstructor, self.score, self.grid = reconstructor, score, grid
        self.image_size, self.sigma, self.top_fraction = image_size, sigma, top_fraction
        # of a score that knows its reconstructor, the copies know the same one
        self.alone: Mapping[str, TokenScore] = nn.ModuleDict(  # type: ignore[assignment]
            {m: deepcopy(score, {id(reconstructor): reconstructor}) for m in _ALONE}
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
        if self._of_two and not self.reconstructor.needs_both:
            for modality in shots.tokens:
                alone = shots._replace(tokens={modality: shots.tokens[modality]})
                self._fit_one(self.alone[modality], alone, {FUSED: _SLOTS[_ALONE[modality]]})
        return self

    def _fit_one(self, score: TokenScore, shots: Features, slots: Mapping[str, int]) -> None:
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
            DataError: for one modality, if the reconstructor needs both.
            RuntimeError: if the detector was not fitted to these modalities.
        """
        if self.reconstructor.needs_both and len(features.tokens) == 1:
            raise DataError(
                f"modalities: this detector needs rgb and normals together, got {next(iter(features.tokens))}"
            )
        rebuilt = self.reconstructor(features.tokens, features.mask)
        if self._of_two and len(features.tokens) == 1:
            maps = self._maps_of_one(features, rebuilt)
        else:
            scores = self.score(features.tokens, rebuilt)
            if features.guessed is not None and self._of_two and not self.reconstructor.needs_both:
                scores = self._without_guesses(scores, features, features.guessed)
            maps = {name: self._map(values, features.mask, _SLOTS[name]) for name, values in scores.items()}
        return Prediction(image_score(maps[FUSED], top_fraction=self.top_fraction), maps)

    def _maps_of_one(self, features: Features, rebuilt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Heatmaps of the one modality that is there."""
        (modality,) = features.tokens
        scores = self.alone[modality](features.tokens, rebuilt)
        heatmap = self._map(scores[FUSED], features.mask, _SLOTS[_ALONE[modality]])
        return dict.fromkeys((modality, FUSED), self._on_the_scale_of_both(heatmap, modality))

    def _without_guesses(self, scores: Mapping[str, Tensor], features: Features, guessed: Tensor) -> dict[str, Tensor]:
        """Token scores (b n) with those by colour alone where the normals are guessed."""
        seen = {"rgb": features.tokens["rgb"]}
        by_colour = self.alone["rgb"](seen, self.reconstructor(seen, features.mask))[FUSED]
        unseen = self.typical[_SLOTS["normals"]]
        return {
            "rgb": scores["rgb"],
            "normals": torch.where(guessed, unseen, scores["normals"]),
            FUSED: torch.where(guessed, self._on_the_scale_of_both(by_colour, "rgb"), scores[FUSED]),
        }

    def _on_the_scale_of_both(self, values: Tensor, modality: str) -> Tensor:
        """Scores by one modality, moved and stretched so that the typical and the worst spot of the good parts come to
        lie where they lie with both.
        """
        slot, fused = _SLOTS[_ALONE[modality]], _SLOTS[FUSED]
        low, high = self.typical[slot], self.extreme[slot]
        gain = (self.extreme[fused] - self.typical[fused]) / (high - low).clamp_min(1e-12)
        return self.typical[fused] + gain * (values - low)

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
