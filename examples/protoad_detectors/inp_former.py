"""INP-Former: prototypes taken from the image itself guide a decoder that cannot copy its input (Luo et al., Exploring
Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection, CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from protoad.detection import Features
from protoad.errors import ConfigError
from protoad.losses import soft_mining_loss
from protoad.ops import unit
from protoad_detectors.trained import TrainedReconstructor, counted, seeded

__all__ = ["INPFormerReconstructor", "coherence_loss", "relu_attention"]


class INPFormerReconstructor(TrainedReconstructor):
    """One INP-Former per modality, independent of the other: two streams, whose cosine distances are summed.

    Smaller than published, to train in seconds on a CPU: 2 decoder layers, not 8, the last of which is compared; hidden
    layers as wide as a token, not four times; one group of features, not two; 30 epochs of the shots as they are with
    Adam, not 200 of 22 turned and shifted copies with StableAdamW. Weights start as torch has them; a layer norm stands
    before the bottleneck, none before keys and values. Its own score is the cosine distance; that of a part the maximum
    of its heatmap, not the mean of its top hundredth.

    Args:
        dims: modality -> d, a multiple of `num_heads`.
        num_prototypes: taken from each image.
        num_layers: of the decoder.
        num_heads: of every attention.
        mlp_ratio: width of hidden layers, in d.
        coherence: weight of the coherence loss.
        epochs: passes over the shots.
        lr: learning rate.
        seed: of weights and the order of the shots.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        num_prototypes: int = 6,
        num_layers: int = 2,
        num_heads: int = 8,
        mlp_ratio: int = 1,
        coherence: float = 0.2,
        epochs: int = 30,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(dims, epochs=epochs, lr=lr, seed=seed)
        for modality, dim in dims.items():
            if dim % num_heads:
                raise ConfigError(f"num_heads: expected a divisor of the {dim} channels of {modality}, got {num_heads}")
        self.coherence = coherence
        with seeded(seed):
            self.streams = nn.ModuleDict(
                {m: _Stream(d, num_prototypes, num_layers, num_heads, mlp_ratio * d) for m, d in dims.items()}
            )

    def fit(self, shots: Features) -> INPFormerReconstructor:
        self.history = []
        self.minimise(shots, [self.streams], self._loss)
        return self

    def _loss(self, tokens: dict[str, Tensor], mask: Tensor) -> Tensor:
        tokens, mask = counted(tokens, mask)
        losses = []
        for modality, target in tokens.items():
            rebuilt, prototypes = self.streams[modality](target, mask)
            losses.append(soft_mining_loss(rebuilt, target, token_mask=mask))
            losses.append(self.coherence * coherence_loss(target, prototypes, mask))
        return torch.stack(losses).sum()

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        scaled = self.scaled(tokens, token_mask)
        return self.unscaled({m: self.streams[m](t, token_mask)[0] for m, t in scaled.items()})


def coherence_loss(tokens: Tensor, prototypes: Tensor, token_mask: Tensor) -> Tensor:
    """Gives the mean cosine distance of tokens (b n d) that count, mask (b n), from the nearest prototype (b k d)."""
    distance = 1 - (unit(tokens) @ unit(prototypes).mT).amax(-1)
    return distance[token_mask].mean()


def relu_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Gives relu(scale * cos(q, k)) v per head, not normalised: no prototype needs to be attended to.

    Args:
        queries: (b h n c).
        keys: (b h k c).
        values: (b h k c).
        scale: (h).
    """
    return (unit(queries) @ unit(keys).mT * scale[:, None, None]).relu() @ values


class _Stream(nn.Module):
    """Prototypes from the tokens by cross-attention of learnt queries; bottleneck; decoder guided by the prototypes."""

    def __init__(self, dim: int, num_prototypes: int, num_layers: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_prototypes, dim))
        self.norms: Sequence[nn.Module] = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))  # type: ignore[assignment]
        self.extract = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.refine, self.bottleneck = _mlp(dim, hidden), _mlp(dim, hidden)
        self.decoder = nn.ModuleList(_GuidedLayer(dim, num_heads, hidden) for _ in range(num_layers))

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(b n d) rebuilt tokens, and the prototypes (b k d) of the tokens that count."""
        queries, keys = self.queries.expand(tokens.shape[0], -1, -1), self.norms[1](tokens)
        found, _ = self.extract(self.norms[0](queries), keys, keys, key_padding_mask=~token_mask, need_weights=False)
        prototypes = queries + found
        prototypes = prototypes + self.refine(prototypes)
        rebuilt = self.bottleneck(tokens)
        for layer in self.decoder:
            rebuilt = layer(rebuilt, prototypes)
        return rebuilt, prototypes


class _GuidedLayer(nn.Module):
    """Attention to the prototypes without a residual around it, so that nothing but prototypes passes; then an MLP."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(num_heads))
        self.mlp = _mlp(dim, hidden)

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        def split(values: Tensor) -> Tensor:
            return rearrange(values, "b n (h c) -> b h n c", h=self.scale.shape[0])

        queries, keys, values = self.query(self.norm(tokens)), self.key(prototypes), self.value(prototypes)
        attended = relu_attention(split(queries), split(keys), split(values), self.scale)
        guided = self.out(rearrange(attended, "b h n c -> b n (h c)"))
        return guided + self.mlp(guided)


def _mlp(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
