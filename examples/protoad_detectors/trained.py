"""What the rivals with weights share: a seeded start, tokens of unit scale, and training on the shots."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from protoad.detection import Features, Reconstructor
from protoad.training import Schedule, train

__all__ = ["TrainedReconstructor", "counted", "seeded"]

Loss = Callable[[dict[str, Tensor], Tensor], Tensor]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws weights from a seed, and leaves the random numbers of everybody else alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def counted(tokens: Mapping[str, Tensor], token_mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gives tokens and mask without the positions that count in no part: they change nothing, and cost most time."""
    counts = token_mask.any(0)
    return {m: t[:, counts] for m, t in tokens.items()}, token_mask[:, counts]


class TrainedReconstructor(Reconstructor):
    """Base of rivals that are trained as PIRN is: with Adam, one shot in a batch (8 above 50), gradients of norm 1.

    Tokens are divided by the shots' root mean square, modality by modality, so that weights start at a fitting scale
    whatever the encoder; those that do not count are set to zero.

    Args:
        dims: modality -> d.
        epochs: passes over the shots.
        lr: learning rate of Adam.
        seed: of weights and the order of the shots.
    """

    def __init__(self, dims: Mapping[str, int], *, epochs: int, lr: float, seed: int) -> None:
        super().__init__()
        self.epochs, self.lr, self.seed = epochs, lr, seed
        for modality in dims:
            self.register_buffer(f"scale_{modality}", torch.ones(()))

    def scaled(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        """Gives tokens (b n d) by modality at the scale of the weights, zero where they do not count."""
        hidden = ~token_mask.unsqueeze(-1)
        return {m: (t / self.get_buffer(f"scale_{m}")).masked_fill(hidden, 0) for m, t in tokens.items()}

    def unscaled(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives them at the scale of the encoder again."""
        return {m: t * self.get_buffer(f"scale_{m}") for m, t in tokens.items()}

    def minimise(self, shots: Features, modules: Iterable[nn.Module], loss: Loss) -> None:
        """Trains modules; what is reported is added to the history.

        Args:
            shots: features of the good parts.
            modules: to train.
            loss: of scaled tokens (b n d) by modality and a mask (b n) of those that count.
        """
        for modality, tokens in shots.tokens.items():
            self.get_buffer(f"scale_{modality}").copy_(tokens[shots.mask].square().mean().sqrt())
        scaled = self.scaled(shots.tokens, shots.mask)

        def step(indices: Tensor) -> tuple[Tensor, Mapping[str, float]]:
            return loss({m: t[indices] for m, t in scaled.items()}, shots.mask[indices]), {}

        history = train(
            [parameter for module in modules for parameter in module.parameters()],
            step,
            shots=len(shots.mask),
            schedule=Schedule(epochs=self.epochs, lr=self.lr, seed=self.seed),
            progress="training",
        )
        self.history = [*self.history, *history]
