"""A small training loop over cached features, for any detector."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from protoad.errors import TrainingError

__all__ = ["Schedule", "train"]

_FEW_SHOT = 50  # the paper's largest few-shot setting; above it, the all-shot schedule


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. The defaults are the paper's, its silent batch size ours.

    Attributes:
        epochs: passes over the shots; None: 60 up to 50 shots, 8 above.
        batch_size: None: 1 up to 50 shots, 8 above.
        lr: learning rate of Adam.
        clip_norm: largest norm of the gradient. Soft mining weighs hard tokens without bound.
        seed: of the order of the shots.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 1e-4
    clip_norm: float = 1.0
    seed: int = 0

    def for_shots(self, shots: int) -> tuple[int, int]:
        """Gives (epochs, batch size) for this many shots."""
        few = shots <= _FEW_SHOT
        epochs = (60 if few else 8) if self.epochs is None else self.epochs
        return epochs, min(shots, (1 if few else 8) if self.batch_size is None else self.batch_size)


def train(
    parameters: Iterable[torch.nn.Parameter],
    step: Callable[[Tensor], tuple[Tensor, Mapping[str, float]]],
    *,
    shots: int,
    schedule: Schedule = Schedule(),
    progress: str | None = None,
) -> list[dict[str, float]]:
    """Minimises a loss over the shots with Adam.

    Args:
        parameters: what is trained.
        step: given indices (batch) into the shots, on the CPU, gives the scalar loss and figures to report.
        shots: how many there are.
        schedule: epochs, batch size, learning rate, clipping, seed.
        progress: label of a progress bar on stderr; None for none.

    Returns:
        One dict per epoch: the mean of "loss" and of every figure reported.

    Raises:
        TrainingError: as soon as the loss is not finite.
    """
    parameters = list(parameters)
    epochs, batch_size = schedule.for_shots(shots)
    optimiser = torch.optim.Adam(parameters, lr=schedule.lr)
    generator = torch.Generator().manual_seed(schedule.seed)
    history: list[dict[str, float]] = []
    for epoch in _with_progress(range(epochs), progress, history):
        sums: dict[str, float] = {}
        batches = torch.randperm(shots, generator=generator).split(batch_size)
        for indices in batches:
            loss, figures = step(indices)
            if not torch.isfinite(loss):
                raise TrainingError(f"loss is {loss.item()} in epoch {epoch}; try a smaller learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, schedule.clip_norm)
            optimiser.step()
            for name, value in {"loss": loss.item(), **figures}.items():
                sums[name] = sums.get(name, 0.0) + value * len(indices) / shots
        history.append(sums)
    return history


def _with_progress(epochs: range, label: str | None, history: list[dict[str, float]]) -> Iterator[int]:
    """Counts the epochs on a bar that shows the last figures; plain counting without tqdm or a label."""
    if label is None or not sys.stderr.isatty():
        yield from epochs
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield from epochs
        return
    with tqdm(epochs, desc=label, unit="epoch", leave=False) as bar:
        for epoch in bar:
            yield epoch
            bar.set_postfix({name: f"{value:.4f}" for name, value in list(history[-1].items())[:3]})
