"""PIRN (paper Algorithm 1), composed from the modules of protoad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from pirn.config import PIRNConfig
from protoad.detection import Features, Reconstructor
from protoad.distributed import Group, mean_figures
from protoad.errors import ConfigError
from protoad.losses import cosine_loss, soft_mining_loss
from protoad.nn import (
    AttentionAssign,
    CrossModalPrototypeGAT,
    GatedProtoCrossAttention,
    GlobalMeanAggregate,
    GRUPrototypeRefiner,
    LinearAssign,
    PrototypeGuard,
    SigmoidAssign,
    SinkhornAssign,
    SoftmaxAssign,
    TopKAggregate,
    TransportAggregate,
)
from protoad.ops import kmeans
from protoad.training import Schedule, Snapshot, train

__all__ = ["PIRN", "LayerState", "PIRNLayer"]

_LOSSES = {"soft_mining": soft_mining_loss, "cosine": cosine_loss}


class LayerState(NamedTuple):
    """What a layer hands on, modality -> tensor, and what it did.

    Attributes:
        tokens: (b n d) Z_rec, the next layer's Z.
        prototypes: (b k d) refined P, the next layer's P.
        intra: (b n d) Z_bpa, made of this modality's prototypes alone.
        displacement: scalar, mean |P' - P| / |P| of the refinement.
    """

    tokens: dict[str, Tensor]
    prototypes: dict[str, Tensor]
    intra: dict[str, Tensor]
    displacement: dict[str, Tensor]


class PIRNLayer(nn.Module):
    """One decoder layer: refine the prototypes (APR), assign the tokens (BPA), exchange with the other modality (MNC).

    Args:
        dims: modality -> d; one for all, since both modalities' prototypes share a graph.
        config: settings.
    """

    def __init__(self, dims: Mapping[str, int], config: PIRNConfig) -> None:
        super().__init__()
        transport = SinkhornAssign(epsilon=config.epsilon, n_iters=config.n_iters)
        self.assign = nn.ModuleDict({m: _assignment(config, d, transport) for m, d in dims.items()})
        self.aggregate: nn.Module | None = {
            "transport": TransportAggregate(transport),
            "topk": TopKAggregate(),
            "mean": GlobalMeanAggregate(),
            "none": None,
        }[config.aggregation]
        refined = dims if self.aggregate is not None else {}
        self.refine = nn.ModuleDict(
            {m: GRUPrototypeRefiner(d, update_bias=config.update_bias) for m, d in refined.items()}
        )
        self.guard: Mapping[str, PrototypeGuard] = nn.ModuleDict(  # type: ignore[assignment]
            {m: PrototypeGuard() for m in refined if config.guard}
        )
        exchange = config.mnc and len(dims) == 2
        dim = next(iter(dims.values()))
        if exchange and dim % config.gat_heads:
            raise ConfigError(f"gat_heads: expected a divisor of the encoder's {dim} channels, got {config.gat_heads}")
        self.align = (
            CrossModalPrototypeGAT(dim, num_heads=config.gat_heads, num_neighbors=config.num_neighbors)
            if exchange
            else None
        )
        self.inject: Mapping[str, GatedProtoCrossAttention] = nn.ModuleDict(  # type: ignore[assignment]
            {m: GatedProtoCrossAttention(d, residual=config.residual, gamma=config.gamma) for m, d in dims.items()}
            if exchange
            else {}
        )

    def forward(self, tokens: dict[str, Tensor], prototypes: dict[str, Tensor], token_mask: Tensor) -> LayerState:
        """Runs lines 7-21 of Algorithm 1 on tokens (b n d) and prototypes (b k d) of each modality."""
        displacement = {m: p.new_zeros(()) for m, p in prototypes.items()}
        if self.aggregate is not None:
            before = prototypes
            seen = tokens
            if self.guard and not self.training:  # what is learnt from is good
                seen = {m: self.guard[m](z, prototypes[m]) for m, z in tokens.items()}
            prototypes = {m: self.refine[m](p, self.aggregate(seen[m], p, token_mask)) for m, p in prototypes.items()}
            displacement = {m: _relative_change(before[m], p) for m, p in prototypes.items()}
        intra = {m: self.assign[m](z, prototypes[m], token_mask).reconstruction for m, z in tokens.items()}
        if self.align is None or len(tokens) == 1:  # nobody to exchange with: one modality is missing
            return LayerState(intra, prototypes, intra, displacement)
        aligned = self.align(prototypes["rgb"], prototypes["normals"])
        other = {"rgb": aligned.second, "normals": aligned.first}
        rebuilt = {m: intra[m] + self.inject[m](z, intra[m], other[m]) for m, z in tokens.items()}
        return LayerState(rebuilt, prototypes, intra, displacement)


def _assignment(config: PIRNConfig, dim: int, transport: SinkhornAssign) -> nn.Module:
    """How one modality's tokens are assigned; `transport` is shared, for it has no parameters."""
    if config.assignment == "attention":
        return AttentionAssign(dim)
    return {
        "transport": transport,
        "softmax": SoftmaxAssign(epsilon=config.epsilon),
        "linear": LinearAssign(),
        "sigmoid": SigmoidAssign(epsilon=config.epsilon),
    }[config.assignment]


class PIRN(Reconstructor):
    """Rebuilds the tokens of one or two modalities from a few prototypes each (paper Algorithm 1).

    Tokens are first divided by the shots' root mean square: the refiner's candidates lie in (-1, 1), whatever
    the scale of the encoder.

    Args:
        dims: modality ("rgb", "normals") -> d.
        config: settings.

    Raises:
        ConfigError: if two modalities differ in d.
    """

    def __init__(self, dims: Mapping[str, int], config: PIRNConfig) -> None:
        super().__init__()
        if len(set(dims.values())) != 1:
            widths = " and ".join(f"{d} of the {m} branch" for m, d in dims.items())
            raise ConfigError(
                "encoder_normals: the branches of PIRN share a graph and need tokens of as many channels, got "
                f"{widths}; choose encoders of one width, or one modality"
            )
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        self.prototypes = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(config.num_prototypes, d, generator=generator)) for m, d in dims.items()}
        )
        for modality in dims:
            self.register_buffer(f"scale_{modality}", torch.ones(()))
        between = config.num_layers - 1 if config.layer_norm else 0
        self.norms: Sequence[Mapping[str, nn.Module]] = nn.ModuleList(
            [nn.ModuleDict({m: nn.LayerNorm(d) for m, d in dims.items()}) for _ in range(between)]
        )  # type: ignore[assignment]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.layers: Sequence[PIRNLayer] = nn.ModuleList(
                [PIRNLayer(dims, config) for _ in range(config.num_layers)]
            )  # type: ignore[assignment]
        self.history: list[dict[str, float]] = []

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        """Gives modality -> (b n d) Z_rec of the last layer, for tokens (b n d) and token_mask (b n).

        Of two modalities one may be missing: the other is then rebuilt from its own prototypes, without exchange.
        """
        rebuilt = self.trace(tokens, token_mask)[-1].tokens
        return {m: z * self.get_buffer(f"scale_{m}") for m, z in rebuilt.items()}

    def trace(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> list[LayerState]:
        """Gives what every layer did, on tokens divided by the scale. Leaves no trace in the codebook."""
        current = self._scaled(tokens)
        prototypes = {m: self.prototypes[m].expand(token_mask.shape[0], -1, -1) for m in tokens}
        states = []
        for index, layer in enumerate(self.layers):
            state = layer(self._handed_on(current, index), prototypes, token_mask)
            current, prototypes = state.tokens, state.prototypes
            states.append(state)
        return states

    def _handed_on(self, tokens: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """What layer `index` gets of the one before it."""
        if index == 0 or not self.norms:
            return tokens
        return {m: self.norms[index - 1][m](z) for m, z in tokens.items()}

    def _scaled(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: z / self.get_buffer(f"scale_{m}") for m, z in tokens.items()}

    def fit(self, shots: Features, snapshot: Snapshot | None = None, process_group: Group = None) -> PIRN:
        """Trains on good parts with the paper's loss: last layer, both modalities summed.

        With deep supervision every layer's Z_bpa is held to the same loss, so that prototypes cannot leave the work
        to what passes by them.

        Args:
            shots: features of the good parts.
            snapshot: where to go on from if an earlier run was cut short.
            process_group: processes that train together, all with the same shots.
        """
        self.initialise(shots)
        self.history = self._train(shots, self.config.epochs, snapshot, process_group)
        return self

    def fine_tune(self, shots: Features, epochs: int) -> PIRN:
        """Trains on from where it is, such as on more good parts; the history goes on."""
        self.history = self.history + self._train(shots, epochs)
        return self

    def _train(
        self, shots: Features, epochs: int | None, snapshot: Snapshot | None = None, process_group: Group = None
    ) -> list[dict[str, float]]:
        config = self.config
        self.train()
        history = train(
            self.parameters(),
            lambda indices: self._step(shots, indices, process_group),
            shots=len(shots.mask),
            schedule=Schedule(epochs=epochs, batch_size=config.batch_size, lr=config.lr, seed=config.seed),
            snapshot=snapshot,
            progress="training",
            process_group=process_group,
        )
        self.eval()
        self.fit_guard(shots)
        return history

    @torch.no_grad()
    def fit_guard(self, shots: Features) -> None:
        """Sets the limits of the guards, layer after layer, by the shots; until then they let everything pass.

        Needs a model in evaluation mode: guards do nothing while it trains.
        """
        current = self._scaled(shots.tokens)
        prototypes = {m: self.prototypes[m].expand(len(shots.mask), -1, -1) for m in current}
        for index, layer in enumerate(self.layers):
            current = self._handed_on(current, index)
            for modality, guard in layer.guard.items():
                guard.fit(current[modality], prototypes[modality], shots.mask)
            state = layer(current, prototypes, shots.mask)
            current, prototypes = state.tokens, state.prototypes

    @torch.no_grad()
    def initialise(self, shots: Features) -> None:
        """Sets the scale, and the prototypes to k-means centres of the shots' tokens unless they start at random.

        Raises:
            ConfigError: if there are fewer kept tokens than prototypes.
        """
        if shots.mask.sum() < self.config.num_prototypes:
            raise ConfigError(
                f"num_prototypes: expected at most {int(shots.mask.sum())}, the tokens of the shots that count, "
                f"got {self.config.num_prototypes}"
            )
        for modality, tokens in shots.tokens.items():
            kept = tokens[shots.mask]
            scale = self.get_buffer(f"scale_{modality}").copy_(kept.square().mean().sqrt())
            if self.config.prototype_init == "kmeans":
                centres = kmeans(kept / scale, self.config.num_prototypes, seed=self.config.seed)
                self.prototypes[modality].copy_(centres)

    def _step(self, shots: Features, indices: Tensor, process_group: Group = None) -> tuple[Tensor, dict[str, float]]:
        idle = (
            len(indices) == 0
        )  # fewer shots in the batch than processes: this one takes any, and counts nothing of it
        shots = shots.pick(indices.new_zeros(1) if idle else indices)
        counts = shots.mask.any(0)  # tokens that count in no shot of the batch change nothing and cost most of the time
        shots = Features({m: z[:, counts] for m, z in shots.tokens.items()}, shots.mask[:, counts])
        states = self.trace(shots.tokens, shots.mask)
        loss_fn, counted = _LOSSES[self.config.loss], torch.zeros_like(shots.mask) if idle else shots.mask
        supervised = [states[-1].tokens, *(state.intra for state in states if self.config.deep_supervision)]
        losses = [
            loss_fn(z, shots.tokens[m], token_mask=counted, process_group=process_group)
            for rebuilt in supervised
            for m, z in rebuilt.items()
        ]
        # the leak is a mean over tokens, the others over images
        leak = mean_figures(self._leak(shots, states), float(counted.sum()), process_group)
        return torch.stack(losses).sum(), leak | mean_figures(self._figures(states), len(indices), process_group)

    @torch.no_grad()
    def _leak(self, shots: Features, states: list[LayerState]) -> dict[str, float]:
        """How much of the input gets past the prototypes.

        That is, how much closer the input that passes through, Z' = Z sigmoid(Z_bpa), is to the target than
        what prototypes can rebuild: cos(E, Z') - cos(E, Z_bpa), in the last layer. 0 where nothing passes.
        """
        leak = 0.0
        last = states[-1]
        before = states[-2].tokens if len(states) > 1 else self._scaled(shots.tokens)
        entering = self._handed_on(before, len(states) - 1)
        for modality, target in shots.tokens.items():
            if self.config.residual == "purified" and self.layers[-1].align is not None:
                purified = entering[modality] * last.intra[modality].sigmoid()
                gain = cosine_similarity(target, purified, dim=-1) - cosine_similarity(
                    target, last.intra[modality], dim=-1
                )
                leak += gain[shots.mask].mean().item() / len(shots.tokens)
        return {"leak": leak}

    @torch.no_grad()
    def _figures(self, states: list[LayerState]) -> dict[str, float]:
        """What else to watch while training: gates, and how far prototypes move, per layer and modality."""
        figures = {}
        for modality in states[-1].tokens:
            for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
                if modality in layer.inject:
                    figures[f"gate_{modality}_{index}"] = layer.inject[modality].gate.item()
                figures[f"displacement_{modality}_{index}"] = state.displacement[modality].item()
        return figures


def _relative_change(before: Tensor, after: Tensor) -> Tensor:
    return ((after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)).mean().detach()
