"""Losses between the tokens a frozen encoder saw and the tokens a decoder gave back."""

from __future__ import annotations

import torch
from torch import Tensor

from protoad.distributed import Group, total
from protoad.errors import ShapeError

__all__ = ["cosine_loss", "soft_mining_loss"]

# A shorter vector has no direction worth a gradient: 1 / norm would swamp every other token.
_NORM_GUARD = 1e-8


def soft_mining_loss(
    reconstruction: Tensor,
    target: Tensor,
    *,
    y: float = 3.0,
    token_mask: Tensor | None = None,
    process_group: Group = None,
) -> Tensor:
    """Cosine distance of whole images whose gradient is pushed towards the badly rebuilt tokens.

    Value: ``mean_b (1 - cos(vec(reconstruction_b), vec(target_b)))``, one cosine per image over all n * d
    numbers. Gradient: that of the value, each token's share multiplied by its weight
    ``w = (distance / mean distance) ** y``, where ``distance = 1 - cos`` of the token and the mean is over all
    kept tokens of the whole batch. The weights change the gradient only, never the value, and get no gradient
    themselves (INP-Former's soft mining loss, written without a hook: it compiles and works under autocast).

    Args:
        reconstruction: (b n d) tokens rebuilt by the decoder.
        target: (b n d) tokens of the encoder; never receives a gradient.
        y: exponent of the weights, finite and at least 0; 0 weights all tokens alike. Weights are not bounded
            (y = 3 gives 64 to a token four times as far off as the average): clip the gradient's norm.
        token_mask: (b n) bool, True for the tokens that count; the others are as good as absent, and so is an
            image without any token that counts. None counts all.
        process_group: processes that hold a batch together, each some of its images; the mean distance is then over
            the tokens of all.

    Returns:
        Scalar; 0 with a zero gradient if no token counts at all. With a process group, this process's part: value
        and gradient of the batch are the sums over the processes.

    Raises:
        ShapeError: if shapes disagree, or the mask is not bool.
        ValueError: if y is negative or not finite.

    Note:
        Computed in float32 (float64 for float64 input). A vector shorter than 1e-8 has no direction: its
        cosine is 0, so it counts as distance 1, and this cosine passes no gradient on.

    Examples:
        >>> z = torch.eye(2).expand(1, 2, 2)
        >>> round(soft_mining_loss(-z, z).item(), 6)
        2.0
    """
    if not 0 <= y < float("inf"):
        raise ValueError(f"y: expected a finite exponent of at least 0, got {y}")
    reconstruction, target, kept = _prepare(reconstruction, target, token_mask)
    with torch.no_grad():
        # Rounding can push a cosine above 1, and a negative distance has no fractional power.
        distance = (1 - _cosine(reconstruction, target)).clamp_min(0) * kept
        mean = total(distance.sum(), process_group) / total(kept.sum(), process_group).clamp_min(1)
        weights = (distance / mean.clamp_min(torch.finfo(distance.dtype).tiny)) ** y
    fixed = reconstruction.detach()
    weighted = fixed + weights.unsqueeze(-1) * (reconstruction - fixed)
    counts = kept.any(dim=1)
    per_image = 1 - _cosine(weighted.flatten(1), target.flatten(1))
    return (per_image * counts).sum() / total(counts.sum(), process_group).clamp_min(1)


def cosine_loss(
    reconstruction: Tensor, target: Tensor, *, token_mask: Tensor | None = None, process_group: Group = None
) -> Tensor:
    """Mean cosine distance of the tokens: ``mean_{b n} (1 - cos(reconstruction, target))``.

    Args:
        reconstruction: (b n d) tokens rebuilt by the decoder.
        target: (b n d) tokens of the encoder; never receives a gradient.
        token_mask: (b n) bool, True for the tokens that count; None counts all.
        process_group: processes that hold a batch together, each some of its images.

    Returns:
        Scalar in [0, 2]; 0 with a zero gradient if no token counts at all. With a process group, this process's part:
        value and gradient of the batch are the sums over the processes.

    Raises:
        ShapeError: if shapes disagree, or the mask is not bool.

    Note:
        Computed in float32 (float64 for float64 input). A token shorter than 1e-8 has no direction: its
        cosine is 0, so it counts as distance 1, and it gets no gradient.

    Examples:
        >>> z = torch.eye(2).expand(1, 2, 2)
        >>> round(cosine_loss(z.flip(1), z).item(), 6)
        1.0
    """
    reconstruction, target, kept = _prepare(reconstruction, target, token_mask)
    count = total(kept.sum(), process_group).clamp_min(1)
    return ((1 - _cosine(reconstruction, target)) * kept).sum() / count


def _prepare(reconstruction: Tensor, target: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Checks shapes; returns both token sets in working precision with zeros where masked, and the mask."""
    if reconstruction.ndim != 3:
        raise ShapeError(f"reconstruction: expected tokens (b n d), got {tuple(reconstruction.shape)}")
    if target.shape != reconstruction.shape:
        raise ShapeError(
            f"target: expected the shape of reconstruction {tuple(reconstruction.shape)}, got {tuple(target.shape)}"
        )
    if token_mask is None:
        token_mask = torch.ones(reconstruction.shape[:2], dtype=torch.bool, device=reconstruction.device)
    if token_mask.dtype != torch.bool or token_mask.shape != reconstruction.shape[:2]:
        raise ShapeError(
            f"token_mask: expected bool (b n) = {tuple(reconstruction.shape[:2])}, "
            f"got {token_mask.dtype} {tuple(token_mask.shape)}"
        )
    dtype = torch.float64 if reconstruction.dtype == torch.float64 else torch.float32
    # Filled, not multiplied: a masked token may hold NaN.
    masked = ~token_mask.unsqueeze(-1)
    return (
        reconstruction.to(dtype).masked_fill(masked, 0),
        target.detach().to(dtype).masked_fill(masked, 0),
        token_mask,
    )


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine along the last axis; 0 with a zero gradient where either vector is shorter than the guard."""
    first_square, second_square = first.square().sum(-1), second.square().sum(-1)
    defined = ~(torch.minimum(first_square, second_square) <= _NORM_GUARD**2)  # written so that NaN stays NaN
    # Replaced before the root: its slope at 0 is infinite, and infinity times zero would be NaN.
    norms = first_square.where(defined, torch.ones_like(first_square)).sqrt()
    norms = norms * second_square.where(defined, torch.ones_like(second_square)).sqrt()
    dot = (first * second).sum(-1)
    return (dot / norms).where(defined, torch.zeros_like(dot))
