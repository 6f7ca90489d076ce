"""From features and their reconstruction to token scores, heatmaps and one score per image, for any detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cosine_similarity, interpolate, pad

from protoad.errors import ShapeError
from protoad.ops import kmeans, unit

__all__ = ["FUSED", "ResidualScore", "ScoreKind", "TokenScore", "anomaly_map", "gaussian_blur", "image_score"]

ScoreKind = Literal["cosine", "conditional", "whitened"]
"""How residuals are scored; `ResidualScore` explains each."""

FUSED = "fused"
"""The name of the score and heatmap of all modalities together."""

_FOLDS = 5
_PRIOR = 5.0  # a pattern seen in few tokens borrows its spread from all, as if it were this many tokens
_SHRINKAGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


class TokenScore(nn.Module):
    """Base of how a detector scores tokens, given what they were rebuilt as.

    A score defines `forward`, and `learn` if good parts teach it anything.

    Attributes:
        shot_scores: after `fit`, modality or "fused" -> scores (b n) of the good parts themselves, 0 where masked: what
            a fresh good part may be expected to score.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shot_scores: dict[str, Tensor] = {}

    @torch.no_grad()
    def fit(
        self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor], token_mask: Tensor | None = None
    ) -> Self:
        """Learns what good parts score; returns itself.

        Args:
            targets: modality -> (b n d) encoder tokens of the good parts.
            reconstructions: modality -> (b n d), the same keys and shapes, each part rebuilt without its own memory
                where there is one.
            token_mask: (b n) bool, True for tokens that count.

        Raises:
            ShapeError: for differing keys or shapes, or too few kept tokens.
        """
        _check_pairs(targets, reconstructions)
        if token_mask is None:
            token_mask = torch.ones_like(next(iter(targets.values()))[..., 0], dtype=torch.bool)
        scores = self.learn(targets, reconstructions, token_mask)
        self.shot_scores = {name: values.masked_fill(~token_mask, 0) for name, values in scores.items()}
        return self

    def learn(
        self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor], token_mask: Tensor
    ) -> dict[str, Tensor]:
        """Fits whatever there is to fit, as `fit` says, and gives the scores of the good parts: here, `forward`'s."""
        return self(targets, reconstructions)

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives modality -> (b n) scores, larger for the more anomalous, and under "fused" that of all together.

        Args:
            targets: modality -> (b n d).
            reconstructions: modality -> (b n d).
        """
        raise NotImplementedError


class ResidualScore(TokenScore):
    """Scores tokens by what their reconstruction leaves over, fitted on the good parts alone.

    - "cosine": d = 1 - cos(E, Z) per modality, summed (paper Algorithm 1, lines 23-24). Needs no fit.
    - "conditional": (d - mean) / deviation, both *given the normal pattern* the token resembles: some patterns
      (edges, texture) always reconstruct badly, and an image score is a maximum over patches.
    - "whitened": the Mahalanobis length of E/|E| - Z/|Z|, both modalities concatenated, under the residuals of
      the shots, then conditional as above. What varies among good parts counts little, what never does counts much.

    A covariance flatters the residuals it was estimated from, so level and spread of the whitened score, and the
    shrinkage, come from shots held out in turn. Only the unit of "whitened" and "conditional" is comparable between
    products: deviations of a good token.

    Args:
        kind: one of the three.
        shrinkage: weight of the isotropic part in the covariance, in (0, 1]; None takes the one under which
            held-out shots are most likely.
        num_patterns: k-means centres that stand for the normal patterns.
        temperature: of the soft assignment of a token to patterns, on the cosine.
        seed: of the k-means draw.

    Raises:
        ValueError: for an argument out of range.

    Attributes:
        shot_scores: after `fit`, scores (b n) of the good parts themselves, 0 where masked; whitened ones each under a
            covariance fitted without their shot.

    Examples:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> good = {"rgb": 1 + 0.1 * torch.randn(5, 49, 8)}
        >>> flat = {"rgb": torch.ones(5, 49, 8)}                 # the poorest of reconstructions
        >>> score = ResidualScore("whitened", num_patterns=4).fit(good, flat)
        >>> scores = score({"rgb": 1 + 0.3 * torch.randn(5, 49, 8)}, flat)
        >>> scores["fused"].shape, bool(scores["fused"].mean() > 2)
        (torch.Size([5, 49]), True)
    """

    def __init__(
        self,
        kind: ScoreKind = "whitened",
        *,
        shrinkage: float | None = None,
        num_patterns: int = 32,
        temperature: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in ("cosine", "conditional", "whitened"):
            raise ValueError(f"kind: expected cosine, conditional or whitened, got {kind!r}")
        if num_patterns < 1 or not temperature > 0:
            raise ValueError(f"expected num_patterns >= 1 and temperature > 0, got {num_patterns} and {temperature}")
        if shrinkage is not None and not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage: expected a value in (0, 1], got {shrinkage}")
        self.kind, self.shrinkage, self.num_patterns = kind, shrinkage, num_patterns
        self.temperature, self.seed = temperature, seed
        self.statistics = nn.ModuleDict()

    def learn(
        self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor], token_mask: Tensor
    ) -> dict[str, Tensor]:
        """Learns what residuals of good parts look like.

        Raises:
            ShapeError: for fewer kept tokens than patterns.
        """
        self.statistics = nn.ModuleDict()
        if self.kind == "cosine":
            return self(targets, reconstructions)
        if token_mask.sum() < self.num_patterns:
            raise ShapeError(f"targets: expected {self.num_patterns} kept tokens or more, got {int(token_mask.sum())}")
        found = {}
        for group in _groups(targets):
            pair = {m: targets[m] for m in group}
            shots = [one[kept] for one, kept in zip(_joined(pair), token_mask, strict=True)]
            if self.kind == "whitened":
                residuals = [one[kept] for one, kept in zip(_residual(pair, reconstructions), token_mask, strict=True)]
                whitener, distance = _whiten(residuals, self.shrinkage)
            else:
                whitener, distance = shots[0].new_zeros(0, 0), _cosine_distance(pair, reconstructions)[token_mask]
            fitted = self._statistics(torch.cat(shots), whitener, distance)
            self.statistics["+".join(group)] = fitted
            scores = torch.zeros_like(token_mask, dtype=distance.dtype)
            scores[token_mask] = fitted.standardise(torch.cat(shots), distance, self.temperature)
            found[group[0] if len(group) == 1 else FUSED] = scores
        found.setdefault(FUSED, found[next(iter(targets))])
        return found

    def _statistics(self, tokens: Tensor, whitener: Tensor, distance: Tensor) -> _Statistics:
        """Level and spread of the distance (n) given the pattern of the tokens (n d)."""
        centres = unit(kmeans(tokens, self.num_patterns, seed=self.seed))
        weights = _pattern_weights(tokens, centres, self.temperature)
        mass = weights.sum(0)
        level = weights.mT @ distance / mass.clamp_min(1e-6)
        variance = (weights * (distance.unsqueeze(-1) - level).square()).sum(0) / mass.clamp_min(1e-6)
        log_spread = 0.5 * variance.clamp_min(1e-12).log()  # borrowed by ratio: spreads differ by orders of magnitude
        typical = (mass * log_spread).sum() / mass.sum()
        spread = ((mass * log_spread + _PRIOR * typical) / (mass + _PRIOR)).exp()
        return _Statistics(centres=centres, whitener=whitener, level=level, spread=spread)

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives modality -> (b n) scores, and under "fused" the score of all modalities together.

        Args:
            targets: modality -> (b n d).
            reconstructions: modality -> (b n d).

        Raises:
            ShapeError: for differing keys or shapes.
            RuntimeError: if "conditional" or "whitened" were not fitted to these modalities.
        """
        _check_pairs(targets, reconstructions)
        scores = {}
        for group in _groups(targets):
            name, pair = "+".join(group), {m: targets[m] for m in group}
            if self.kind == "whitened":
                distance = _residual(pair, reconstructions)
            else:
                distance = _cosine_distance(pair, reconstructions)
            if self.kind != "cosine":
                if name not in self.statistics:
                    found = sorted(self.statistics) or "nothing"
                    raise RuntimeError(
                        f"score: fitted to {found}, asked for {name}; call fit with these modalities first"
                    )
                distance = self.statistics[name](_joined(pair), distance, self.temperature)
            scores[name if len(group) == 1 else FUSED] = distance
        scores.setdefault(FUSED, scores[next(iter(targets))])
        return scores

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Makes room for the fitted statistics first: only the checkpoint knows their number and shapes."""
        start = f"{prefix}statistics."
        stored: dict[str, dict[str, Tensor]] = {}
        for key, value in state_dict.items():
            if key.startswith(start):
                group, _, name = key.removeprefix(start).rpartition(".")
                stored.setdefault(group, {})[name] = torch.empty_like(value)
        self.statistics = nn.ModuleDict({group: _Statistics(**tensors) for group, tensors in stored.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.kind!r}, shrinkage={self.shrinkage}, num_patterns={self.num_patterns}"


class _Statistics(nn.Module):
    """Residuals of good parts: their whitening, and level and spread of the distance given the normal pattern."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name in ("centres", "whitener", "level", "spread"):
            self.register_buffer(name, tensors[name])

    def forward(self, tokens: Tensor, measured: Tensor, temperature: float) -> Tensor:
        """(b n) deviations of the measured residual (b n d) or distance (b n) from that of a good token (b n d)."""
        whitener = self.get_buffer("whitener")
        distance = (measured @ whitener).norm(dim=-1) if whitener.numel() else measured
        return self.standardise(tokens, distance, temperature)

    def standardise(self, tokens: Tensor, distance: Tensor, temperature: float) -> Tensor:
        """(... n) deviations of a distance (... n) from that of good tokens like these (... n d)."""
        weights = _pattern_weights(tokens, self.get_buffer("centres"), temperature)
        return (distance - weights @ self.get_buffer("level")) / (weights @ self.get_buffer("spread"))


def _groups(targets: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Each modality alone, and all together."""
    alone: list[tuple[str, ...]] = [(m,) for m in targets]
    return [*alone, tuple(targets)] if len(targets) > 1 else alone


def _check_pairs(targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> None:
    if not targets or targets.keys() != reconstructions.keys():
        raise ShapeError(
            f"targets, reconstructions: expected the same modalities, got {list(targets)} and {list(reconstructions)}"
        )
    for name, target in targets.items():
        if target.ndim != 3 or target.shape != reconstructions[name].shape:
            raise ShapeError(
                f"{name}: expected targets and reconstructions of one shape (b n d), "
                f"got {tuple(target.shape)} and {tuple(reconstructions[name].shape)}"
            )


def _cosine_distance(targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([1 - cosine_similarity(t, reconstructions[m], dim=-1) for m, t in targets.items()]).sum(0)


def _joined(tokens: Mapping[str, Tensor]) -> Tensor:
    """Unit tokens of all modalities side by side, scaled to unit length again, (b n sum d)."""
    return torch.cat([unit(t) for t in tokens.values()], dim=-1) / len(tokens) ** 0.5


def _residual(targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([unit(t) - unit(reconstructions[m]) for m, t in targets.items()], dim=-1)


def _pattern_weights(tokens: Tensor, centres: Tensor, temperature: float) -> Tensor:
    return (unit(tokens) @ centres.mT / temperature).softmax(-1)


def _whiten(residuals: list[Tensor], shrinkage: float | None) -> tuple[Tensor, Tensor]:
    """Whitens the residuals (n d) of each shot.

    Returns:
        W (d d) with W W^T = (shrunk second moment of all)^-1, and the lengths |r W| (sum n) of the residuals, each
        under a W fitted without its own shot.
    """
    if len(residuals) == 1:  # nothing to hold out but pieces of the only shot
        residuals = [piece for piece in residuals[0].tensor_split(_FOLDS) if len(piece)]
    folds = [list(range(i, len(residuals), _FOLDS)) for i in range(min(_FOLDS, len(residuals)))]
    held_out = [_held_out(residuals, fold) for fold in folds]
    if shrinkage is None:
        likelihood = [sum(_log_likelihood(*one, candidate) for one in held_out) for candidate in _SHRINKAGES]
        shrinkage = _SHRINKAGES[int(torch.stack([torch.as_tensor(value) for value in likelihood]).argmax())]
    lengths: list[Tensor] = [residuals[0]] * len(residuals)
    for fold, (values, rotated, sizes) in zip(folds, held_out, strict=True):
        length = (rotated.square() / _shrunk(values, shrinkage)).sum(-1).sqrt()
        for index, part in zip(fold, length.split(sizes), strict=True):
            lengths[index] = part
    values, vectors = _spectrum(residuals)
    whitener = vectors * _shrunk(values, shrinkage).rsqrt()
    return whitener.to(residuals[0].dtype), torch.cat(lengths).to(residuals[0].dtype)


def _held_out(residuals: list[Tensor], fold: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Spectrum of the shots outside a fold, the fold's residuals along its axes, and their number per shot."""
    others = [r for index, r in enumerate(residuals) if index not in fold] or residuals
    values, vectors = _spectrum(others)
    inside = [residuals[index] for index in fold]
    return values, torch.cat(inside).double() @ vectors, [len(r) for r in inside]


def _spectrum(residuals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of the second moment about zero, not the mean: what a reconstruction always leaves
    over is still left over.
    """
    stacked = torch.cat(residuals).double()
    values, vectors = torch.linalg.eigh(stacked.mT @ stacked / len(stacked))
    return values.clamp_min(0), vectors


def _shrunk(values: Tensor, shrinkage: float) -> Tensor:
    return (1 - shrinkage) * values + shrinkage * values.mean().clamp_min(1e-12)


def _log_likelihood(values: Tensor, rotated: Tensor, sizes: list[int], shrinkage: float) -> Tensor:
    """Of residuals along the axes of a Gaussian about zero, up to constants."""
    shrunk = _shrunk(values, shrinkage)
    return -0.5 * ((rotated.square() / shrunk).sum() + len(rotated) * shrunk.log().sum())


def anomaly_map(token_scores: Tensor, grid: tuple[int, int], *, size: int, sigma: float = 4.0) -> Tensor:
    """Gives heatmaps: token scores on their grid, bilinear to the image, Gaussian blur in float.

    Args:
        token_scores: (b n), n = grid y times grid x, row by row.
        grid: (tokens down, tokens across).
        size: pixels of the square map.
        sigma: of the blur, in pixels; 0 for none.

    Returns:
        (b y x).

    Raises:
        ShapeError: if n is not the grid's.
    """
    if token_scores.ndim != 2 or token_scores.shape[1] != grid[0] * grid[1]:
        raise ShapeError(
            f"token_scores: expected (b {grid[0] * grid[1]}) for grid {grid}, got {tuple(token_scores.shape)}"
        )
    maps = token_scores.unflatten(1, (1, *grid))
    maps = interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
    return gaussian_blur(maps, sigma).squeeze(1)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gives images (b c y x) blurred by a Gaussian of `sigma` pixels, cut at 4 sigma, borders reflected.

    Equal to scipy.ndimage.gaussian_filter with mode="mirror" wherever the image is larger than the kernel's radius.
    """
    if sigma == 0:
        return images
    radius = min(int(4 * sigma + 0.5), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = pad(images, (radius,) * 4, mode="reflect")
    rows = conv2d(padded, kernel, groups=images.shape[1])
    return conv2d(rows, kernel.mT, groups=images.shape[1])


def image_score(maps: Tensor, *, top_fraction: float = 0.0) -> Tensor:
    """Gives one score per map: its maximum (as in the paper), or the mean of its largest pixels.

    Args:
        maps: (b y x).
        top_fraction: share of the pixels averaged; 0 takes the maximum.

    Returns:
        (b).
    """
    if not 0 <= top_fraction <= 1:
        raise ValueError(f"top_fraction: expected a value in [0, 1], got {top_fraction}")
    pixels = maps.flatten(1)
    return pixels.topk(max(1, round(top_fraction * pixels.shape[1])), dim=1).values.mean(1)
