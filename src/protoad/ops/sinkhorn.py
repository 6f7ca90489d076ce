"""Balanced optimal transport between tokens and prototypes by Sinkhorn's iteration (paper Eq. 1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from protoad.errors import ShapeError
from protoad.ops._checks import check_mask, check_positive, check_tokens_and_prototypes
from protoad.ops._cosine import cosine_similarity
from protoad.ops._sinkhorn_solver import solve
from protoad.ops.precision import full_precision, solver_dtype, unit

__all__ = ["Cost", "Gradient", "Transport", "cosine_cost", "sinkhorn", "sinkhorn_from_cost"]

Cost = Literal["cosine", "sqeuclidean"]
Gradient = Literal["unrolled", "detached"]


class Transport(NamedTuple):
    """A transport plan and the potentials it came from: plan = exp(f + g - cost / epsilon).

    Attributes:
        plan: (... n k), rows sum to the row mass exactly, columns up to `marginal_error`.
        f: (... n) logarithmic row potential, -inf where a row carries no mass.
        g: (... k) logarithmic column potential.
        iterations: how many iterations were run.
        marginal_error: (...) largest relative error of a column sum, max_k |sum_n plan - b_k| / b_k.
    """

    plan: Tensor
    f: Tensor
    g: Tensor
    iterations: int
    marginal_error: Tensor


def cosine_cost(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Gives the cosine distance C_nk = 1 - cos(z_n, p_k), in [0, 2].

    Args:
        tokens: (... n d). A zero token has cosine 0 to everything, and zero gradient.
        prototypes: (k d) or (... k d).

    Returns:
        (... n k).
    """
    check_tokens_and_prototypes(tokens, prototypes)
    return 1 - cosine_similarity(tokens, unit(prototypes))


def _squared_euclidean_cost(tokens: Tensor, prototypes: Tensor) -> Tensor:
    check_tokens_and_prototypes(tokens, prototypes)
    squares = tokens.square().sum(-1).unsqueeze(-1) + prototypes.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * tokens @ prototypes.mT).clamp_min(0)


_COSTS = {"cosine": cosine_cost, "sqeuclidean": _squared_euclidean_cost}


def sinkhorn(
    tokens: Tensor,
    prototypes: Tensor,
    *,
    cost: Cost = "cosine",
    epsilon: float = 0.05,
    n_iters: int = 20,
    gradient: Gradient = "unrolled",
    token_mask: Tensor | None = None,
    row_mass: Tensor | None = None,
    col_mass: Tensor | None = None,
) -> Transport:
    """Gives the entropic optimal transport plan from tokens to prototypes (paper Eq. 1).

    T* = argmin_T <T, C> - epsilon H(T)  subject to  T 1 = a,  T^T 1 = b,
    with a = 1 for every token and b = (number of tokens) / k, so that all prototypes are used equally.
    Paper symbols: Z = tokens, P = prototypes, C = cost, T* = plan.

    Args:
        tokens: (... n d).
        prototypes: (k d), shared, or (... k d), one codebook per item.
        cost: "cosine", 1 - cos in [0, 2], or "sqeuclidean".
        epsilon: entropic regularisation, in units of the cost.
        n_iters: Sinkhorn iterations; each updates the columns, then the rows.
        gradient: "unrolled" is exact for the iterations run; "detached" lets none through the plan.
        token_mask: (... n) bool; a token with False carries no mass and its row is 0.
        row_mass: (... n) masses a, non-negative; default 1.
        col_mass: (... k) masses b, positive; default sum(a) / k.

    Returns:
        `Transport`. The plan has the dtype of the tokens; it is solved in float32 (float64 for float64), also under
        autocast.

    Raises:
        ShapeError: for shapes that do not fit.
        ValueError: for epsilon or n_iters not above 0, or an unknown cost or gradient.

    Examples:
        >>> import torch
        >>> from protoad.ops import sinkhorn
        >>> tokens = torch.eye(4)[[0, 0, 1, 1]]
        >>> plan = sinkhorn(tokens, torch.eye(4)[:2]).plan
        >>> plan.shape, plan.argmax(-1).tolist()
        (torch.Size([4, 2]), [0, 0, 1, 1])
    """
    if cost not in _COSTS:
        raise ValueError(f"cost: expected one of {', '.join(_COSTS)}, got {cost!r}")
    check_tokens_and_prototypes(tokens, prototypes)
    check_mask(token_mask, tokens)
    if token_mask is not None:
        kept = token_mask.to(solver_dtype(tokens))
        row_mass = kept if row_mass is None else row_mass * kept
    with full_precision(tokens):
        dtype = solver_dtype(tokens)
        costs = _COSTS[cost](tokens.to(dtype), prototypes.to(dtype))
        transport = sinkhorn_from_cost(
            costs, epsilon=epsilon, n_iters=n_iters, gradient=gradient, row_mass=row_mass, col_mass=col_mass
        )
    return transport._replace(plan=transport.plan.to(tokens.dtype))


def sinkhorn_from_cost(
    cost: Tensor,
    *,
    epsilon: float = 0.05,
    n_iters: int = 20,
    gradient: Gradient = "unrolled",
    row_mass: Tensor | None = None,
    col_mass: Tensor | None = None,
) -> Transport:
    """Gives the entropic optimal transport plan for a given cost; see `sinkhorn`.

    One iteration is g <- log b - LSE_n(f - C / epsilon), then f <- log a - LSE_k(g - C / epsilon), from f = 0:
    the order of POT, rows last, so that T 1 = a holds exactly and T P is a convex combination of prototypes.

    Args:
        cost: (... n k).
        epsilon: entropic regularisation, in units of the cost.
        n_iters: Sinkhorn iterations.
        gradient: "unrolled" or "detached".
        row_mass: (... n) masses a, non-negative; default 1.
        col_mass: (... k) masses b, positive; default sum(a) / k.

    Raises:
        ShapeError: for shapes that do not fit.
        ValueError: for epsilon or n_iters not above 0, or an unknown gradient.
    """
    if cost.ndim < 2 or 0 in cost.shape[-2:]:
        raise ShapeError(f"cost: expected (... n k) with n, k >= 1, got {tuple(cost.shape)}")
    if gradient not in ("unrolled", "detached"):
        raise ValueError(f"gradient: expected unrolled or detached, got {gradient!r}")
    check_positive(epsilon=epsilon, n_iters=n_iters)
    solved = (cost.detach() if gradient == "detached" else cost).to(solver_dtype(cost))
    *leading, n, k = cost.shape
    solution = solve(
        solved,
        _mass("row_mass", row_mass, solved, (*leading, n)),
        _mass("col_mass", col_mass, solved, (*leading, k)),
        epsilon,
        n_iters,
    )
    return Transport(solution.plan.to(cost.dtype), solution.f, solution.g, n_iters, solution.error)


def _mass(name: str, mass: Tensor | None, cost: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    if mass is None:
        return None
    if mass.shape not in (shape, shape[-1:]):
        raise ShapeError(f"{name}: expected {shape} for cost {tuple(cost.shape)}, got {tuple(mass.shape)}")
    return mass.to(cost).expand(shape)
