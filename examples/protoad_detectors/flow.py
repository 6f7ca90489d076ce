"""A normalising flow over single tokens: what the teacher of `asymmetric.py` is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Flow", "position_encoding"]


class Flow(nn.Module):
    """Conditional RealNVP: couplings that each scale and shift half of the channels, as the other half and the
    condition say, after a fixed shuffle of all. It starts as the identity, shuffled.

    Args:
        dim: d, channels of a token.
        condition: c, channels of the condition.
        num_couplings: one after the other.
        hidden: width of the networks.
        clamp: bound of the log of a scale, reached softly by the arc tangent.
    """

    def __init__(
        self, dim: int, condition: int, *, num_couplings: int = 8, hidden: int = 64, clamp: float = 1.9
    ) -> None:
        super().__init__()
        self.couplings: Sequence[_Coupling] = nn.ModuleList(  # type: ignore[assignment]
            _Coupling(dim, condition, hidden, clamp) for _ in range(num_couplings)
        )

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Gives latents (... d) of tokens (... d) under a condition (... c), and log |det| (...) of the Jacobian."""
        log_det = tokens.new_zeros(tokens.shape[:-1])
        for coupling in self.couplings:
            tokens, log_scale = coupling(tokens, condition)
            log_det = log_det + log_scale.sum(-1)
        return tokens, log_det

    def inverse(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Gives the tokens (... d) whose latents (... d) these are."""
        for coupling in reversed(self.couplings):
            latents = coupling.inverse(latents, condition)
        return latents


class _Coupling(nn.Module):
    order: Tensor
    back: Tensor

    def __init__(self, dim: int, condition: int, hidden: int, clamp: float) -> None:
        super().__init__()
        self.num_kept, self.clamp = dim // 2, clamp
        self.register_buffer("order", torch.randperm(dim))
        self.register_buffer("back", self.order.argsort())
        self.network = nn.Sequential(
            nn.Linear(self.num_kept + condition, hidden), nn.ReLU(), nn.Linear(hidden, 2 * (dim - self.num_kept))
        )
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(tokens[..., self.order])
        log_scale, shift = self._scale_and_shift(kept, condition)
        return torch.cat([kept, changed * log_scale.exp() + shift], dim=-1), log_scale

    def inverse(self, latents: Tensor, condition: Tensor) -> Tensor:
        kept, changed = self._split(latents)
        log_scale, shift = self._scale_and_shift(kept, condition)
        return torch.cat([kept, (changed - shift) * (-log_scale).exp()], dim=-1)[..., self.back]

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values[..., : self.num_kept], values[..., self.num_kept :]

    def _scale_and_shift(self, kept: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.network(torch.cat([kept, condition], dim=-1)).chunk(2, dim=-1)
        return 2 / math.pi * self.clamp * (log_scale / self.clamp).atan(), shift


def position_encoding(grid: tuple[int, int], channels: int) -> Tensor:
    """Gives (n c) sines and cosines of the row and the column of each token, at frequencies falling to 1 / 10000.

    Args:
        grid: tokens (down, across), n in all, row by row.
        channels: c, a multiple of 4.
    """
    frequencies = (-math.log(1e4) * torch.arange(channels // 4) / (channels // 4)).exp()
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    angles = torch.cat([one.flatten()[:, None] * frequencies for one in (rows, columns)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
