"""What a token of the table looks like, for pictures that come without the depth that would tell it from the part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protoad.errors import ShapeError

__all__ = ["TokenBackground"]

_SHRINKAGE = 0.05  # there may be fewer tokens than channels


class TokenBackground(nn.Module):
    """Tells tokens of the part from tokens of the table by their looks (Fisher's linear discriminant).

    Learnt from good parts whose point cloud showed what is part. Where these show no table at all, everything is part.

    Args:
        dim: d, channels of a token.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([[[1.0, 0.1], [1.0, -0.1], [-1.0, 0.2], [-1.0, -0.2]]])
        >>> looks = TokenBackground(2).fit(tokens, torch.tensor([[True, True, False, False]]))
        >>> looks(torch.tensor([[[0.4, 3.0], [-0.4, 3.0]]])).tolist()
        [[True, False]]
    """

    direction: Tensor
    offset: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("direction", torch.zeros(dim))
        self.register_buffer("offset", torch.ones(()))  # > 0: everything is part

    @torch.no_grad()
    def fit(self, tokens: Tensor, part: Tensor) -> TokenBackground:
        """Learns from tokens (b n d) of good parts and where the part is, (b n) bool.

        Raises:
            ShapeError: if the two don't belong together.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != len(self.direction) or part.shape != tokens.shape[:2]:
            raise ShapeError(
                f"tokens, part: expected (b n {len(self.direction)}) and (b n), got {tuple(tokens.shape)} and "
                f"{tuple(part.shape)}"
            )
        self.direction.zero_()
        self.offset.fill_(1.0)
        classes = [tokens[part].double(), tokens[~part].double()]
        if not all(len(one) for one in classes):
            return self
        here, there = (one.mean(0) for one in classes)
        scatter = sum((one - one.mean(0)).mT @ (one - one.mean(0)) for one in classes) / sum(map(len, classes))
        ridge = _SHRINKAGE * torch.as_tensor(scatter).diagonal().mean().clamp_min(1e-12)
        direction = torch.linalg.solve(
            scatter + ridge * torch.eye(len(here), dtype=here.dtype, device=here.device), here - there
        )
        self.direction.copy_(direction)
        self.offset.copy_(-0.5 * direction @ (here + there))
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Gives (b n) bool, True for tokens (b n d) that look like the part rather than the table."""
        return tokens @ self.direction + self.offset > 0
