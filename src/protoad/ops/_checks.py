"""Checks of public arguments, so that a wrong shape is named before it becomes a broadcast."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from protoad.errors import ShapeError

__all__ = ["check_choice", "check_mask", "check_positive", "check_tokens_and_prototypes"]


def check_tokens_and_prototypes(tokens: Tensor, prototypes: Tensor) -> None:
    """Holds tokens (... n d) and prototypes (k d) or (... k d) against each other.

    Raises:
        ShapeError: for missing axes, empty axes, different d, or leading axes that do not broadcast to the tokens'.
    """
    if tokens.ndim < 2 or 0 in tokens.shape[-2:]:
        raise ShapeError(f"tokens: expected (... n d) with n, d >= 1, got {tuple(tokens.shape)}")
    if prototypes.ndim < 2 or prototypes.shape[-2] == 0:
        raise ShapeError(f"prototypes: expected (k d) or (... k d) with k >= 1, got {tuple(prototypes.shape)}")
    if tokens.shape[-1] != prototypes.shape[-1]:
        raise ShapeError(
            f"prototypes: expected d={tokens.shape[-1]} as in tokens {tuple(tokens.shape)}, "
            f"got {tuple(prototypes.shape)}"
        )
    if prototypes.ndim > 2 and prototypes.shape[:-2] != tokens.shape[:-2]:
        raise ShapeError(
            f"prototypes: expected (k d) or leading axes {tuple(tokens.shape[:-2])} as in tokens, "
            f"got {tuple(prototypes.shape)}"
        )


def check_mask(token_mask: Tensor | None, tokens: Tensor) -> None:
    """Holds a token mask (... n), True for tokens that count, against tokens (... n d).

    Raises:
        ShapeError: for another shape or a dtype other than bool.
    """
    if token_mask is None:
        return
    if token_mask.dtype != torch.bool or token_mask.shape != tokens.shape[:-1]:
        raise ShapeError(
            f"token_mask: expected bool {tuple(tokens.shape[:-1])}, "
            f"got {str(token_mask.dtype).removeprefix('torch.')} {tuple(token_mask.shape)}"
        )


def check_positive(**arguments: float) -> None:
    """Raises ValueError for the first argument that is not above zero."""
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a value above 0, got {value}")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raises ValueError for a value that is not among those of a Literal."""
    if value not in get_args(choices):
        raise ValueError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}")
