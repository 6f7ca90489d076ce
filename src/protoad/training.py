"""A small training loop over cached features, for any detector, that a power cut does not send back to the start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from protoad.checkpoint import load_checkpoint, save_checkpoint
from protoad.distributed import Group, from_first, is_first, share, size, total
from protoad.errors import CheckpointError, TrainingError

__all__ = ["Schedule", "Snapshot", "train"]

Step = Callable[[Tensor], tuple[Tensor, Mapping[str, float]]]
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


@dataclass(frozen=True)
class Snapshot:
    """Where an interrupted training is kept, to go on to the same result, bit for bit.

    Written whole after every epoch, and once before the first: a folder that cannot hold it is reported before the
    work, not after. Whoever trains deletes it when the result is safe.

    Args:
        path: of the file.
        identity: of what is trained on what, such as a hash of settings and features; a snapshot of another identity,
            or a damaged one, counts as none.
    """

    path: Path
    identity: str

    def load(self) -> _State | None:
        """Gives the state that was kept, or None."""
        try:
            tensors, header = load_checkpoint(self.path)
        except CheckpointError:
            return None
        return _State(tensors, header["history"]) if header.get("identity") == self.identity else None

    def save(self, state: _State) -> None:
        """Keeps a state.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        save_checkpoint(self.path, state.tensors, {"identity": self.identity, "history": state.history})


@dataclass(frozen=True)
class _State:
    """After so many epochs as the history is long: parameters, Adam's moments, and the generator of the order."""

    tensors: dict[str, Tensor]
    history: list[dict[str, float]]

    @classmethod
    def of(
        cls, optimiser: torch.optim.Optimizer, generator: torch.Generator, history: list[dict[str, float]]
    ) -> _State:
        """Gives the present state."""
        tensors = {"generator": generator.get_state()}
        for i, parameter in enumerate(optimiser.param_groups[0]["params"]):
            moments = {f"{name}.{i}": value for name, value in optimiser.state[parameter].items()}
            tensors |= {f"parameter.{i}": parameter, **moments}
        return cls(tensors, history)

    def restore(self, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Puts it back."""
        generator.set_state(self.tensors["generator"])
        for i, parameter in enumerate(optimiser.param_groups[0]["params"]):
            parameter.data.copy_(self.tensors[f"parameter.{i}"])
            names = [name for name in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{i}" in self.tensors]
            if names:  # none before the first step
                optimiser.state[parameter] = {
                    name: self.tensors[f"{name}.{i}"].to(_place(name, parameter)) for name in names
                }


def _place(name: str, parameter: Tensor) -> torch.device:
    """Adam counts its steps on the host."""
    return torch.device("cpu") if name == "step" else parameter.device


def train(
    parameters: Iterable[torch.nn.Parameter],
    step: Step,
    *,
    shots: int,
    schedule: Schedule = Schedule(),
    snapshot: Snapshot | None = None,
    progress: str | None = None,
    process_group: Group = None,
) -> list[dict[str, float]]:
    """Minimises a loss over the shots with Adam.

    With a process group every batch is spread over the processes, by PyTorch's DistributedDataParallel, and all end
    with the same parameters and history: those of one process, up to rounding.

    Args:
        parameters: what is trained.
        step: given indices (batch) into the shots, on the CPU, gives the scalar loss and figures to report. With a
            process group it gets its share of a batch, perhaps none of it, and gives its part of the loss: the parts
            of all processes add up to the loss of the batch. Figures are those of the whole batch.
        shots: how many there are.
        schedule: epochs, batch size, learning rate, clipping, seed.
        snapshot: where to go on from, and to keep what is done; None keeps nothing.
        progress: label of a progress bar on stderr; None for none.
        process_group: processes that train together; the first of them keeps the snapshot and shows progress.

    Returns:
        One dict per epoch: the mean of "loss" and of every figure reported.

    Raises:
        TrainingError: as soon as the loss is not finite.
        CheckpointError: if the snapshot cannot be written.
    """
    parameters = list(parameters)
    epochs, batch_size = schedule.for_shots(shots)
    optimiser = torch.optim.Adam(parameters, lr=schedule.lr)
    generator = torch.Generator().manual_seed(schedule.seed)
    history: list[dict[str, float]] = []
    if snapshot is not None:
        history = _resume(snapshot, optimiser, generator, process_group)
    run = step if process_group is None else _distributed(parameters, step, process_group)
    first = is_first(process_group)
    for epoch in _with_progress(range(len(history), epochs), progress if first else None, history):
        sums: dict[str, float] = {}
        batches = torch.randperm(shots, generator=generator).split(batch_size)
        for indices in batches:
            part, figures = run(share(indices, process_group))
            loss = total(part, process_group)  # so that all processes stop alike
            if not torch.isfinite(loss):
                raise TrainingError(f"loss is {loss.item()} in epoch {epoch}; try a smaller learning rate")
            optimiser.zero_grad(set_to_none=True)
            (part * size(process_group)).backward()  # averaged over the processes: parts that add up
            torch.nn.utils.clip_grad_norm_(parameters, schedule.clip_norm)
            optimiser.step()
            for name, value in {"loss": loss.item(), **figures}.items():
                sums[name] = sums.get(name, 0.0) + value * len(indices) / shots
        history.append(sums)
        if snapshot is not None and first:
            snapshot.save(_State.of(optimiser, generator, history))
    return history


class _Step(nn.Module):
    """A step as the module that DistributedDataParallel wants: what it trains, and a forward pass."""

    def __init__(self, parameters: list[nn.Parameter], step: Step) -> None:
        super().__init__()
        self.trained, self.step = nn.ParameterList(parameters), step

    def forward(self, indices: Tensor) -> tuple[Tensor, Mapping[str, float]]:
        return self.step(indices)


def _distributed(parameters: list[nn.Parameter], step: Step, process_group: Group) -> Step:
    """The step, whose gradients come out averaged over the processes; all start from the first one's parameters."""
    return nn.parallel.DistributedDataParallel(_Step(parameters, step), process_group=process_group, static_graph=True)


def _resume(
    snapshot: Snapshot, optimiser: torch.optim.Optimizer, generator: torch.Generator, process_group: Group
) -> list[dict[str, float]]:
    """Takes up what the first process's snapshot holds, or makes the first one; gives the history so far."""
    kept = from_first(snapshot.load() if is_first(process_group) else None, process_group)
    if kept is None:
        kept = _State.of(optimiser, generator, [])
        if is_first(process_group):
            snapshot.save(kept)
    else:
        kept.restore(optimiser, generator)
    return kept.history


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
