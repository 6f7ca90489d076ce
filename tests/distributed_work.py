"""What the processes of test_distributed.py do; without a process group the same work is done by one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from pirn import PIRN, PIRNConfig
from pirn.cli import main
from torch import Tensor, nn

from protoad.detection import Features
from protoad.distributed import Group, from_first, gather, is_first, join, mean_figures, share, size, total
from protoad.encoders import FilterBankEncoder
from protoad.errors import TrainingError
from protoad.losses import soft_mining_loss
from protoad.training import Schedule, Snapshot, train

SHOTS, D = 10, 8
TRAIN = ["train", "--category", "cookie", "--shots", "3", "--augment", "1", "--batch-size", "4", "--epochs", "4"]
TRAIN += ["--image-size", "96", "--num-prototypes", "4", "--residual", "purified"]


def _features() -> Features:
    """Good parts of which unlike numbers of tokens count."""
    generator = torch.Generator().manual_seed(1)
    tokens = {m: torch.randn(SHOTS, 12, D, generator=generator, dtype=torch.float64) for m in ("rgb", "normals")}
    return Features(tokens, torch.rand(SHOTS, 12, generator=generator) < torch.linspace(0.2, 1, SHOTS)[:, None])


def pirn(group: Group, *, batch_size: int, **settings: Any) -> dict[str, Any]:
    """Twenty steps in float64."""
    batches = -(-SHOTS // batch_size)
    config = PIRNConfig(num_prototypes=4, epochs=20 // batches, batch_size=batch_size, lr=0.01, **settings)
    model = PIRN(dict.fromkeys(_features().tokens, D), config).double().fit(_features(), process_group=group)
    return {"parameters": dict(model.named_parameters()), "history": model.history}


def gradients(group: Group) -> dict[str, Any]:
    """Of every step, before and after clipping, with a parameter that nothing uses."""
    shots = _features()
    torch.manual_seed(0)
    linear, unused = nn.Linear(D, D).double(), nn.Parameter(torch.ones(3, dtype=torch.float64))
    found: dict[str, Any] = {}
    for clip_norm in (1e9, 0.01):
        seen = []

        def step(indices: Tensor) -> tuple[Tensor, dict[str, float]]:
            seen.append(None if linear.weight.grad is None else linear.weight.grad.clone())  # noqa: B023
            part = shots.pick(indices)
            rebuilt = linear(part.tokens["rgb"])
            return soft_mining_loss(rebuilt, part.tokens["normals"], token_mask=part.mask, process_group=group), {}

        train(
            [*linear.parameters(), unused],
            step,
            shots=SHOTS,
            schedule=Schedule(epochs=2, batch_size=3, clip_norm=clip_norm),
            process_group=group,
        )
        found[f"clipped at {clip_norm}"] = seen[1:]
    return found | {"unused": unused, "its gradient": unused.grad}


def divergence(group: Group) -> str:
    """What is said when the loss of one shot is no number."""
    weight = nn.Parameter(torch.zeros(()))
    nan = torch.arange(SHOTS) == 9
    try:
        train(
            [weight],
            lambda indices: ((weight / torch.where(nan[indices], 0.0, 1.0)).sum(), {}),
            shots=SHOTS,
            schedule=Schedule(epochs=1, batch_size=SHOTS),
            process_group=group,
        )
    except TrainingError as error:
        return str(error)
    return "nothing"


def resumed(group: Group, folder: Path) -> dict[str, Any]:
    """A training stopped after two of five epochs, the same gone on with, and one in one go."""
    shots = _features()

    def run(epochs: int, snapshot: Snapshot | None, start: float = 0.0) -> list[Any]:
        weight = nn.Parameter(torch.full((D,), start))

        def step(indices: Tensor) -> tuple[Tensor, dict[str, float]]:
            tokens = shots.tokens["rgb"][indices].float()
            return (tokens * (tokens - weight).square()).sum() / SHOTS, {}

        schedule = Schedule(epochs=epochs, batch_size=3, lr=0.1)
        history = train([weight], step, shots=SHOTS, schedule=schedule, snapshot=snapshot, process_group=group)
        return [weight.detach(), history]

    mine = folder / f"of {0 if is_first(group) else 1}.safetensors"
    run(2, Snapshot(mine, "small"))
    again = run(5, Snapshot(mine, "small"), start=0.0 if is_first(group) else 7.0)
    return {"resumed": again, "whole": run(5, None), "kept": mine.exists()}


def collectives(group: Group) -> dict[str, Any]:
    """Each once."""
    rank = 0 if is_first(group) else 1
    mine = share(torch.arange(5), group)
    figures = mean_figures({"a": float("nan") if rank else 2.0}, 0 if rank else 3, group)
    return {
        "share": mine,
        "gathered": gather(mine.unsqueeze(1) * torch.ones(1, 2), group),
        "uneven": gather(torch.full((2 * rank, 3), True), group),
        "total": total(mine.sum(), group),
        "first": from_first({"rank": rank}, group),
        "figures": figures,
        "even": mean_figures({"a": 1.0 + rank, "b": 4.0}, 1 + rank, group),
        "size": size(group),
    }


def statistics(group: Group) -> dict[str, Tensor]:
    """Of an encoder's shots."""
    images = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    keep = torch.rand(5, 36, generator=torch.Generator().manual_seed(3)) > 0.5
    mine = share(torch.arange(5), group)
    return dict(FilterBankEncoder().fit(images[mine], keep[mine], group).state_dict())


def everything(group: Group, folder: Path) -> dict[str, Any]:
    """All of the above."""
    return {
        "pirn": pirn(group, batch_size=3, residual="purified"),
        "pirn cosine": pirn(group, batch_size=5, loss="cosine"),
        "pirn without exchange": pirn(group, batch_size=4, mnc=False, aggregation="topk"),
        "gradients": gradients(group),
        "divergence": divergence(group),
        "resumed": resumed(group, folder),
        "collectives": collectives(group),
        "statistics": statistics(group),
    }


def commands(folder: Path) -> int:
    """A training; the same killed at its third snapshot and started again by torchrun; one with a broken part."""
    good, broken = (["--root", str(folder / name)] for name in ("good", "broken"))
    assert main([*TRAIN, *good, "--out", str(folder / "whole")]) == 0
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        save, saved = Snapshot.save, []

        def killed(self: Snapshot, state: Any) -> None:
            save(self, state)
            saved.append(state)
            if len(saved) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        Snapshot.save = killed  # type: ignore[method-assign]
    assert main([*TRAIN, *good, "--out", str(folder / "cut")]) == 0
    return main([*TRAIN, *broken, "--out", str(folder / "out")])


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.exit(commands(where))
    with join() as of_two:
        torch.save(everything(of_two, where), where / f"{os.environ['RANK']}.pt")
