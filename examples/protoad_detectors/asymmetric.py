"""AST: a student cannot follow a normalising flow where it has not seen it (Rudolph et al., Asymmetric Student-Teacher
Networks for Industrial Anomaly Detection, WACV 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from protoad.detection import Features
from protoad.scoring import TokenScore
from protoad_detectors.flow import Flow, position_encoding
from protoad_detectors.trained import TrainedReconstructor, seeded

__all__ = ["ASTReconstructor", "ASTScore"]

_POSITION = 32  # channels of the position encoding, as published


class ASTReconstructor(TrainedReconstructor):
    """A flow (teacher) learns the density of the shots' tokens; a residual network (student) learns what it gives.

    A token is rebuilt as the flow's inverse of what the student says. Both get the encoded position too. Other than
    published there is a flow for each modality, not one over both, so that one may be missing; all layers act on single
    tokens, not on 3 x 3 of them, so that tokens that do not count have no say; the student has 2 residual blocks of 256
    channels with layer norm, not 4 of 1024 with batch norm; and each of the two is trained for 30 epochs, not 240.

    Args:
        dims: modality -> d.
        grid: tokens (down, across).
        num_couplings: of the flow, each of which changes half of the channels: 4 blocks as published.
        epochs: passes over the shots, first for the teacher, then for the student.
        lr: learning rate, as published.
        seed: of weights and the order of the shots.
    """

    positions: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        grid: tuple[int, int],
        num_couplings: int = 8,
        epochs: int = 30,
        lr: float = 2e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(dims, epochs=epochs, lr=lr, seed=seed)
        self.register_buffer("positions", position_encoding(grid, _POSITION), persistent=False)
        with seeded(seed):
            self.teachers: Mapping[str, Flow] = nn.ModuleDict(  # type: ignore[assignment]
                {m: Flow(d, _POSITION, num_couplings=num_couplings) for m, d in dims.items()}
            )
            self.students: Mapping[str, nn.Module] = nn.ModuleDict(  # type: ignore[assignment]
                {m: _Student(d, _POSITION) for m, d in dims.items()}
            )

    def fit(self, shots: Features) -> ASTReconstructor:
        self.history = []
        self.minimise(shots, self.teachers.values(), self._likelihood)
        self.minimise(shots, self.students.values(), self._distance)
        return self

    def _likelihood(self, tokens: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Negative log likelihood per channel, up to a constant."""
        losses, positions = [], self._positions(mask)[mask]
        for modality, values in tokens.items():
            latent, log_det = self.teachers[modality](values[mask], positions)
            losses.append((0.5 * latent.square().sum(-1) - log_det).mean() / latent.shape[-1])
        return torch.stack(losses).sum()

    def _distance(self, tokens: dict[str, Tensor], mask: Tensor) -> Tensor:
        losses, positions = [], self._positions(mask)[mask]
        for modality, values in tokens.items():
            with torch.no_grad():
                latent, _ = self.teachers[modality](values[mask], positions)
            losses.append(mse_loss(self.students[modality](values[mask], positions), latent))
        return torch.stack(losses).sum()

    def _positions(self, tokens: Tensor) -> Tensor:
        """(b n c) for tokens (b n ...)."""
        return self.positions.expand(tokens.shape[0], -1, -1)

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        rebuilt, positions = {}, self._positions(token_mask)
        for modality, values in self.scaled(tokens, token_mask).items():
            rebuilt[modality] = self.teachers[modality].inverse(self.students[modality](values, positions), positions)
        return self.unscaled(rebuilt)

    def taught(self, modality: str, tokens: Tensor) -> Tensor:
        """Gives what the teacher makes of tokens (b n d) at the scale of the encoder."""
        return self.teachers[modality](tokens / self.get_buffer(f"scale_{modality}"), self._positions(tokens))[0]

    def own_score(self, seed: int = 0) -> ASTScore:
        return ASTScore(self)


class _Student(nn.Module):
    def __init__(self, dim: int, condition: int, *, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(dim + condition, width), nn.Linear(width, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, width))
            for _ in range(blocks)
        )

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        hidden = self.enter(torch.cat([tokens, condition], dim=-1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.leave(hidden)


class ASTScore(TokenScore):
    """Mean squared distance of teacher and student: of the flow's latents of a token and of its reconstruction."""

    def __init__(self, reconstructor: ASTReconstructor) -> None:
        super().__init__()
        self.reconstructor = (reconstructor,)

    def forward(self, targets: Mapping[str, Tensor], reconstructions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        taught = self.reconstructor[0].taught
        scores = {m: (taught(m, t) - taught(m, reconstructions[m])).square().mean(-1) for m, t in targets.items()}
        return {**scores, "fused": torch.stack(list(scores.values())).sum(0)}
