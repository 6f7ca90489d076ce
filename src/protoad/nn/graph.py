"""Stage 1 of multimodal normality communication (MNC): prototypes of two modalities exchange over a graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from protoad.errors import ShapeError
from protoad.ops import unit

__all__ = ["AlignedPrototypes", "CrossModalPrototypeGAT"]


class AlignedPrototypes(NamedTuple):
    """Prototypes after the exchange, P' in the paper: `first` and `second`, both (b k d), in the order given."""

    first: Tensor
    second: Tensor


class CrossModalPrototypeGAT(nn.Module):
    """Graph attention between the prototypes of two modalities (paper section 3.4, stage 1).

    Nodes are the prototypes of both. Node i has an edge from its `num_neighbors` nearest of the *other* modality
    by cosine, and from itself. Per head: e_ij = LeakyReLU(a_dst . W p_i + a_src . W p_j), softmax over the edges
    of i, sum of W p_j; heads are concatenated and added to the prototype.

    Args:
        dim: d, channels of a prototype.
        num_heads: heads, each of d / num_heads channels.
        num_neighbors: edges per node into the other modality; all, if there are fewer prototypes.
        negative_slope: of the LeakyReLU.
        self_loop: whether a node also attends to itself.
        residual: whether the old prototype is added.

    Note:
        The paper gives neither the number of neighbours nor of heads; the defaults are ours. Edges are chosen
        without gradient, ties by index. Both modalities share the weights: it is one graph.

    Examples:
        >>> import torch
        >>> from protoad.nn import CrossModalPrototypeGAT
        >>> align = CrossModalPrototypeGAT(32)
        >>> rgb, normals = torch.randn(2, 10, 32), torch.randn(2, 10, 32)
        >>> aligned = align(rgb, normals)
        >>> aligned.first.shape, aligned.second.shape
        (torch.Size([2, 10, 32]), torch.Size([2, 10, 32]))
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        num_neighbors: int = 3,
        negative_slope: float = 0.2,
        self_loop: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim={dim}, got {num_heads}")
        if num_neighbors < 1:
            raise ValueError(f"num_neighbors: expected at least 1, got {num_neighbors}")
        self.dim, self.num_heads, self.num_neighbors = dim, num_heads, num_neighbors
        self.negative_slope, self.self_loop, self.residual = negative_slope, self_loop, residual
        self.project = nn.Linear(dim, dim, bias=False)
        self.attend_from = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        self.attend_to = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        for weight in (self.project.weight, self.attend_from, self.attend_to):
            nn.init.xavier_uniform_(weight)

    def edges(self, first: Tensor, second: Tensor) -> Tensor:
        """Gives the graph: (b 2k 2k) bool, True where the row's node attends to the column's node.

        Args:
            first: (b k d).
            second: (b k d).
        """
        similarity = unit(first.detach()) @ unit(second.detach()).mT
        cross = _nearest(similarity, self.num_neighbors), _nearest(similarity.mT, self.num_neighbors)
        own = torch.eye(first.shape[-2], dtype=torch.bool, device=first.device) & self.self_loop
        own = own.expand_as(cross[0])
        return torch.cat((torch.cat((own, cross[0]), -1), torch.cat((cross[1], own), -1)), -2)

    def attention(self, first: Tensor, second: Tensor) -> Tensor:
        """Gives how much nodes listen to each other: (b h 2k 2k), rows sum to 1, and are 0 where there is no edge.

        Args:
            first: (b k d).
            second: (b k d).

        Raises:
            ShapeError: if the two differ in shape or d is another than `dim`.
        """
        return self._attend(first, second)[-1]

    def forward(self, first: Tensor, second: Tensor) -> AlignedPrototypes:
        """Exchanges between the prototypes of two modalities.

        Args:
            first: (b k d), say of RGB.
            second: (b k d), say of surface normals.

        Returns:
            `AlignedPrototypes`.

        Raises:
            ShapeError: if the two differ in shape or d is another than `dim`.
        """
        nodes, heads, attention = self._attend(first, second)
        update = (attention @ heads).transpose(-3, -2).flatten(-2)
        nodes = nodes + update if self.residual else update
        return AlignedPrototypes(*nodes.chunk(2, dim=-2))

    def _attend(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gives nodes (b 2k d), what each says to the others (b h 2k d/h), and who listens to whom (b h 2k 2k)."""
        if first.shape != second.shape or first.shape[-1] != self.dim:
            raise ShapeError(
                f"first, second: expected the same (b k d) with d={self.dim}, "
                f"got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        nodes = torch.cat((first, second), dim=-2)
        heads = self.project(nodes).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # (b h 2k d/h)
        source = (heads * self.attend_from.unsqueeze(-2)).sum(-1)
        target = (heads * self.attend_to.unsqueeze(-2)).sum(-1)
        scores = leaky_relu(target.unsqueeze(-1) + source.unsqueeze(-2), self.negative_slope)
        edges = self.edges(first, second).unsqueeze(-3)
        return nodes, heads, scores.masked_fill(~edges, -torch.inf).softmax(-1)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, num_neighbors={self.num_neighbors}, "
            f"negative_slope={self.negative_slope}, self_loop={self.self_loop}, residual={self.residual}"
        )


def _nearest(similarity: Tensor, count: int) -> Tensor:
    """Marks the `count` largest of each row, the first of equals."""
    rank = similarity.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1, stable=True)
    return rank < count
