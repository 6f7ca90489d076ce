"""The training loop."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from protoad import CheckpointError, TrainingError
from protoad.training import Schedule, Snapshot, train


def _fit(seed: int = 0, **options: float) -> tuple[torch.Tensor, list[dict[str, float]]]:
    targets = torch.linspace(0, 1, 10)
    weight = torch.nn.Parameter(torch.zeros(()))
    history = train(
        [weight],
        lambda indices: (((weight - targets[indices]) ** 2).mean(), {"shots": float(len(indices))}),
        shots=10,
        schedule=Schedule(**{"lr": 0.05, "epochs": 100, "seed": seed, **options}),
    )
    return weight.detach(), history


def test_finds_the_minimum_and_reports_epochs() -> None:
    weight, history = _fit(batch_size=10)
    assert weight.item() == pytest.approx(0.5, abs=0.02)
    assert len(history) == 100
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[0]["shots"] == 10


def test_same_seed_same_result_to_the_bit() -> None:
    assert torch.equal(_fit(seed=3)[0], _fit(seed=3)[0])
    assert not torch.equal(_fit(seed=3)[0], _fit(seed=4)[0])


@pytest.mark.parametrize(("shots", "expected"), [(1, (60, 1)), (10, (60, 1)), (50, (60, 1)), (51, (8, 8))])
def test_schedule_follows_the_number_of_shots(shots: int, expected: tuple[int, int]) -> None:
    assert Schedule().for_shots(shots) == expected
    assert Schedule(epochs=3, batch_size=100).for_shots(shots) == (3, shots)


def test_gradients_are_clipped() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    norms = []
    weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad))
    train([weight], lambda _: (1e6 * weight, {}), shots=1, schedule=Schedule(epochs=1, clip_norm=0.5))
    assert norms[0].abs() == pytest.approx(0.5, rel=1e-4)


def test_a_diverging_loss_stops_at_once() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    with pytest.raises(TrainingError, match="loss is nan in epoch 0"):
        train([weight], lambda _: (weight / 0 * 0, {}), shots=1)


def _train_small(
    snapshot: Snapshot | None, *, epochs: int = 12, lr: float = 0.1, pause: float = 0.0
) -> tuple[bytes, list]:
    """A regression with Adam's moments, an order of its own in every epoch, and figures; gives weights and history."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(9, 5), torch.randn(9, 3)
    model = nn.Linear(5, 3)

    def step(indices: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        time.sleep(pause)
        loss = (model(inputs[indices]) - targets[indices]).square().mean()
        return loss, {"largest": model.weight.abs().max().item()}

    schedule = Schedule(epochs=epochs, batch_size=2, lr=lr)
    history = train(model.parameters(), step, shots=9, schedule=schedule, snapshot=snapshot)
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters()), history


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    expected = _train_small(None)
    for epochs in (0, 1, 7, 11, 12):
        snapshot = Snapshot(tmp_path / f"{epochs}.safetensors", "small")
        _train_small(snapshot, epochs=epochs)
        assert _train_small(snapshot) == expected


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    """kill -9, again and again, until as many runs were cut short; each training then ends where it always does."""
    expected, rng, cut = _train_small(None), random.Random(0), 0
    while cut < kills:
        snapshot = Snapshot(tmp_path / "training.safetensors", "small")
        while True:
            child = os.fork()
            if child == 0:
                _train_small(snapshot, pause=0.001)
                os._exit(0)
            time.sleep(rng.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                break
            cut += 1
        assert _train_small(snapshot) == expected
        for leftover in tmp_path.iterdir():
            leftover.unlink()


@pytest.mark.parametrize("spoil", ["another identity", "damaged", "a parameter short"])
def test_a_snapshot_of_something_else_counts_as_none(tmp_path: Path, spoil: str) -> None:
    snapshot = Snapshot(tmp_path / "training.safetensors", "small")
    _train_small(snapshot, epochs=3, lr=0.5)
    if spoil == "another identity":
        snapshot = Snapshot(snapshot.path, "other")
    else:
        content = bytearray(snapshot.path.read_bytes())
        content[-1] ^= 1
        snapshot.path.write_bytes(content if spoil == "damaged" else content[:-8])
    assert _train_small(snapshot) == _train_small(None)


def test_a_folder_that_cannot_hold_the_snapshot_is_named_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    steps = []
    with pytest.raises(CheckpointError, match="cannot be written"):
        train(
            [nn.Parameter(torch.zeros(()))],
            lambda indices: steps.append(indices) or (None, {}),  # type: ignore[func-returns-value]
            shots=2,
            snapshot=Snapshot(tmp_path / "file" / "training.safetensors", ""),
        )
    assert not steps
