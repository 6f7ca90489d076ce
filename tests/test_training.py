"""The training loop."""

from __future__ import annotations

import pytest
import torch

from protoad import TrainingError
from protoad.training import Schedule, train


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
