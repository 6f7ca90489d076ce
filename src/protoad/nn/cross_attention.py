"""Stage 2 of multimodal normality communication (MNC): tokens read the other modality's prototypes (paper Eqs. 3-4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from protoad.errors import ShapeError
from protoad.ops._checks import check_tokens_and_prototypes

__all__ = ["GatedProtoCrossAttention", "Residual"]

Residual = Literal["purified", "none"]


class GatedProtoCrossAttention(nn.Module):
    """Purified tokens attend to the other modality's prototypes, through a learned gate (paper Eqs. 3-4).

        Z'    = Z * sigmoid(Z_bpa)                                                (section 3.4)
        CA    = softmax(Z' W_Q (P' W_K)^T / sqrt(d)) P' W_V                        (3)
        Z_mnc = Z' + g CA,  g = tanh(gamma)                                       (4)

    Paper symbols: Z = tokens, Z_bpa = reconstruction, P' = prototypes.

    Args:
        dim: d, channels of a token.
        num_heads: 1 as printed in the paper.
        residual: "purified" as printed, Z_mnc = Z' + g CA. It lets the input pass to the output, only its
            channels scaled, and a model trained long enough reconstructs anomalies too. "none" leaves Z_mnc = g CA.
        gamma: start of the gate's scalar. From 0, a few hundred Adam steps at 1e-4 never open the gate.
        out_proj: whether a linear layer follows the heads; the paper prints none.

    Examples:
        >>> import torch
        >>> from protoad.nn import GatedProtoCrossAttention
        >>> attend = GatedProtoCrossAttention(32)
        >>> tokens, reconstruction = torch.randn(2, 196, 32), torch.randn(2, 196, 32)
        >>> attend(tokens, reconstruction, torch.randn(2, 10, 32)).shape
        torch.Size([2, 196, 32])
        >>> round(attend.gate.item(), 3)
        0.462
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        residual: Residual = "purified",
        gamma: float = 0.5,
        out_proj: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim={dim}, got {num_heads}")
        if residual not in ("purified", "none"):
            raise ValueError(f"residual: expected purified or none, got {residual!r}")
        self.dim, self.num_heads, self.residual = dim, num_heads, residual
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False) if out_proj else nn.Identity()
        self.gamma = nn.Parameter(torch.tensor(float(gamma)))

    @property
    def gate(self) -> Tensor:
        """G = tanh(gamma), a scalar in (-1, 1)."""
        return self.gamma.tanh()

    def forward(self, tokens: Tensor, reconstruction: Tensor, prototypes: Tensor) -> Tensor:
        """Gives Z_mnc (b n d).

        Args:
            tokens: (b n d), this layer's input Z.
            reconstruction: (b n d), their intra-modal reconstruction Z_bpa.
            prototypes: (b k d) or (k d), the other modality's aligned prototypes P'.

        Raises:
            ShapeError: for shapes that do not fit.
        """
        check_tokens_and_prototypes(tokens, prototypes)
        if reconstruction.shape != tokens.shape or tokens.shape[-1] != self.dim:
            raise ShapeError(
                f"tokens, reconstruction: expected the same (b n d) with d={self.dim}, "
                f"got {tuple(tokens.shape)} and {tuple(reconstruction.shape)}"
            )
        purified = tokens * reconstruction.sigmoid()
        prototypes = prototypes.expand(*tokens.shape[:-2], -1, -1)
        attended = scaled_dot_product_attention(
            self._split(self.query(purified)),
            self._split(self.key(prototypes)),
            self._split(self.value(prototypes)),
        )
        injected = self.gate * self.out(attended.transpose(-3, -2).flatten(-2))
        return purified + injected if self.residual == "purified" else injected

    def _split(self, x: Tensor) -> Tensor:
        """(b n d) -> (b h n d/h). With one head, sqrt(d/h) is the sqrt(d) of Eq. 3."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, residual={self.residual!r}, gamma={self.gamma.item():.3g}"
