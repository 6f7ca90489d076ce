"""From features and their reconstruction to token scores, heatmaps and one score per image, for any detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cosine_similarity, interpolate, pad

from protoad.errors import ShapeError
from protoad.ops import kmeans, unit

__all__ = ["FUSED", "ResidualScore", "ScoreKind", "anomaly_map", "gaussian_blur", "image_score"]

ScoreKind = Literal["cosine", "conditional", "whitened"]
FUSED = "fused"


class ResidualScore(nn.Module):
    """Scores tokens by what their reconstruction leaves over, fitted on the good parts alone.

    - "cosine": d = 1 - cos(E, Z) per modality, summed (paper Algorithm 1, lines 23-24). Needs no fit.
    - "conditional": (d - mean) / deviation, both *given the normal pattern* the token resembles: some patterns
      (edges, texture) always reconstruct badly, and an image score is a maximum over patches.
    - "whitened": the Mahalanobis length of E/|E| - Z/|Z|, both modalities concatenated, under the residuals of
      the shots, then conditional as above. What varies among good parts counts little, what never does counts much.

    Args:
        kind: one of the three.
        shrinkage: weight of the isotropic part in the covariance, in (0, 1].
        num_patterns: k-means centres that stand for the normal patterns.
        temperature: of the soft assignment of a token to patterns, on the cosine.
        seed: of the k-means draw.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> good = {"rgb": torch.randn(5, 49, 8)}
        >>> flat = {"rgb": good["rgb"].mean((0, 1)).expand(5, 49, 8)}      # the poorest of reconstructions
        >>> score = ResidualScore("whitened", num_patterns=4).fit(good, flat)
        >>> scores = score({"rgb": good["rgb"] + 3}, flat)
        >>> scores["fused"].shape, bool(scores["fused"].mean() > 1)
        (torch.Size([5, 49]), True)
    """

    def __init__(
        self,
        kind: ScoreKind = "whitened",
        *,
        shrinkage: float = 0.05,
        num_patterns: int = 32,
        temperature: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in ("cosine", "conditional", "whitened"):
            raise ValueError(f"kind: expected cosine, conditional or whitened, got {kind!r}")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage: expected a value in (0, 1], got {shrinkage}")
        self.kind, self.shrinkage, self.num_patterns = kind, shrinkage, num_patterns
        self.temperature, self.seed = temperature, seed
        self.statistics = nn.ModuleDict()

    @torch.no_grad()
    def fit(
        self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor], token_mask: Tensor | None = None
    ) -> ResidualScore:
        """Learns what residuals of good parts look like.

        Args:
            targets: modality -> (b n d) encoder tokens of the good parts.
            reconstructions: modality -> (b n d), the same keys and shapes.
            token_mask: (b n) bool, True for tokens that count.

        Raises:
            ShapeError: for differing keys or shapes, or fewer kept tokens than patterns.
        """
        _check_pairs(targets, reconstructions)
        self.statistics = nn.ModuleDict()
        if self.kind == "cosine":
            return self
        kept = slice(None) if token_mask is None else token_mask.flatten()
        for group in self._groups(targets):
            target = _joined({m: targets[m] for m in group}).flatten(0, 1)[kept]
            residual = _residual({m: targets[m] for m in group}, reconstructions).flatten(0, 1)[kept]
            distance = sum(_cosine_distance(targets[m], reconstructions[m]) for m in group)
            self.statistics["+".join(group)] = _Statistics(
                target,
                residual if self.kind == "whitened" else torch.as_tensor(distance).flatten()[kept],
                self,
            )
        return self

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
        for group in self._groups(targets):
            name, pair = "+".join(group), {m: targets[m] for m in group}
            distance = torch.as_tensor(sum(_cosine_distance(targets[m], reconstructions[m]) for m in group))
            if self.kind != "cosine":
                if name not in self.statistics:
                    raise RuntimeError(f"ResidualScore: fitted to {sorted(self.statistics) or 'nothing'}, asked for {name}")
                measured = _residual(pair, reconstructions) if self.kind == "whitened" else distance
                distance = self.statistics[name](_joined(pair), measured)
            scores[name if len(group) == 1 else FUSED] = distance
        scores.setdefault(FUSED, scores[next(iter(targets))])
        return scores

    @staticmethod
    def _groups(targets: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
        """Each modality alone, and all together."""
        alone: list[tuple[str, ...]] = [(m,) for m in targets]
        return [*alone, tuple(targets)] if len(targets) > 1 else alone

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object) -> None:
        """Makes room for the fitted statistics first: how many there are is known to the checkpoint alone."""
        own = [key.removeprefix(f"{prefix}statistics.") for key in state_dict if key.startswith(f"{prefix}statistics.")]
        for name in {key.rpartition(".")[0] for key in own}:
            empty = _Statistics.__new__(_Statistics)
            nn.Module.__init__(empty)
            empty.temperature = self.temperature
            for key in own:
                if key.startswith(f"{name}."):
                    value = state_dict[f"{prefix}statistics.{key}"]
                    empty.register_buffer(key.rpartition(".")[2], torch.empty_like(value))
            self.statistics[name] = empty
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{self.kind!r}, shrinkage={self.shrinkage}, num_patterns={self.num_patterns}"


class _Statistics(nn.Module):
    """Residuals of good parts: their whitening, and level and spread of the distance given the normal pattern."""

    centres: Tensor
    whitener: Tensor
    level: Tensor
    spread: Tensor

    def __init__(self, target: Tensor, measured: Tensor, score: ResidualScore) -> None:
        """Fits to kept tokens: target (n d), measured (n d) residuals to whiten or (n) distances."""
        super().__init__()
        if len(target) < score.num_patterns:
            raise ShapeError(f"targets: expected at least {score.num_patterns} kept tokens to fit on, got {len(target)}")
        self.temperature = score.temperature
        whitener = _whitener(measured, score.shrinkage) if measured.ndim == 2 else measured.new_zeros(0, 0)
        self.register_buffer("centres", unit(kmeans(unit(target), score.num_patterns, seed=score.seed)))
        self.register_buffer("whitener", whitener)
        distance = self._distance(measured)
        weights = self._weights(target)
        mass = weights.sum(0)
        level = (weights.mT @ distance) / mass.clamp_min(1e-12)
        variance = (weights * (distance.unsqueeze(-1) - level).square()).sum(0)
        prior = 0.1 * mass.mean()  # a pattern seen in few tokens borrows the spread of all
        self.register_buffer("level", level)
        self.register_buffer("spread", ((variance + prior * distance.var()) / (mass + prior)).sqrt().clamp_min(1e-6))

    def _weights(self, target: Tensor) -> Tensor:
        return (unit(target) @ self.centres.mT / self.temperature).softmax(-1)

    def _distance(self, measured: Tensor) -> Tensor:
        return (measured @ self.whitener).norm(dim=-1) if self.whitener.numel() else measured

    def forward(self, target: Tensor, measured: Tensor) -> Tensor:
        weights = self._weights(target)
        return (self._distance(measured) - weights @ self.level) / (weights @ self.spread)


def _check_pairs(targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> None:
    if not targets or targets.keys() != reconstructions.keys():
        raise ShapeError(f"targets, reconstructions: expected the same modalities, got {list(targets)} and {list(reconstructions)}")
    for name, target in targets.items():
        if target.ndim != 3 or target.shape != reconstructions[name].shape:
            raise ShapeError(
                f"{name}: expected targets and reconstructions of one shape (b n d), "
                f"got {tuple(target.shape)} and {tuple(reconstructions[name].shape)}"
            )


def _cosine_distance(target: Tensor, reconstruction: Tensor) -> Tensor:
    return 1 - cosine_similarity(target, reconstruction, dim=-1)


def _joined(tokens: Mapping[str, Tensor]) -> Tensor:
    """Unit tokens of all modalities side by side, (b n sum d)."""
    return torch.cat([unit(t) for t in tokens.values()], dim=-1)


def _residual(targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([unit(t) - unit(reconstructions[m]) for m, t in targets.items()], dim=-1)


def _whitener(residual: Tensor, shrinkage: float) -> Tensor:
    """W with W W^T = (shrunk second moment)^-1, by eigenvalues in float64. About zero, not the mean: a residual
    that is always the same is still something the reconstruction left over."""
    moment = residual.double().mT @ residual.double() / len(residual)
    scale = moment.diagonal().mean().clamp_min(1e-12)
    moment = (1 - shrinkage) * moment + shrinkage * scale * torch.eye(len(moment), dtype=moment.dtype)
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(1e-12).rsqrt()).to(residual.dtype)


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
        raise ShapeError(f"token_scores: expected (b {grid[0] * grid[1]}) for grid {grid}, got {tuple(token_scores.shape)}")
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
    """Gives one score per map: its maximum (the print), or the mean of its largest pixels.

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
