"""Balanced optimal transport between tokens and prototypes by Sinkhorn's iteration (paper Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from protoad.errors import ShapeError
from protoad.ops import _cosine
from protoad.ops._backend import choose, exporting
from protoad.ops._checks import check_choice, check_mask, check_positive, check_tokens_and_prototypes
from protoad.ops._sinkhorn_op import transport
from protoad.ops._types import Backend, Cost, Gradient, Init, Method, Transport
from protoad.ops.precision import full_precision, solver_dtype
from protoad.ops.sinkhorn_reference import sinkhorn_reference

__all__ = ["cosine_cost", "sinkhorn", "sinkhorn_from_cost"]


def cosine_cost(tokens: Tensor, prototypes: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Gives the cosine distance C_nk = 1 - cos(z_n, p_k), in [0, 2].

    Args:
        tokens: (... n d). A zero token has cosine 0 to everything, and zero gradient.
        prototypes: (k d) or (... k d).
        backend: "auto", "torch" or "triton".

    Returns:
        (... n k) in float32 (float64 for float64).
    """
    check_tokens_and_prototypes(tokens, prototypes)
    return _cosine.cosine_cost(tokens, prototypes, backend)


def _squared_euclidean_cost(tokens: Tensor, prototypes: Tensor, *, backend: Backend) -> Tensor:
    tokens, prototypes = tokens.to(solver_dtype(tokens)), prototypes.to(solver_dtype(tokens))
    squares = tokens.square().sum(-1).unsqueeze(-2) + prototypes.square().sum(-1).unsqueeze(-1)
    return (squares - 2 * prototypes @ tokens.mT).clamp_min(0).mT


_COSTS = {"cosine": cosine_cost, "sqeuclidean": _squared_euclidean_cost}


def sinkhorn(
    tokens: Tensor,
    prototypes: Tensor,
    *,
    cost: Cost = "cosine",
    epsilon: float = 0.05,
    n_iters: int = 20,
    tol: float | None = None,
    method: Method = "sinkhorn",
    gradient: Gradient = "unrolled",
    token_mask: Tensor | None = None,
    row_mass: Tensor | None = None,
    col_mass: Tensor | None = None,
    init: Init | None = None,
    backend: Backend = "auto",
) -> Transport:
    """Gives the entropic optimal transport plan from tokens to prototypes (paper Eq. 1).

        T* = argmin_T <T, C> - epsilon H(T)  subject to  T 1 = a,  T^T 1 = b

    with a = 1 for every token and b = (number of tokens) / k, so that all prototypes are used equally.
    Paper symbols: Z = tokens, P = prototypes, C = cost, T* = plan.

    Twenty iterations at epsilon 0.05 leave the columns about ten per cent off and are what a decoder is usually trained
    with; `method="newton"` gives the plan itself, converged, at about the price of a hundred iterations.

    Args:
        tokens: (... n d).
        prototypes: (k d), shared, or (... k d), one codebook per item.
        cost: "cosine", 1 - cos in [0, 2], or "sqeuclidean".
        epsilon: entropic regularisation, in units of the cost.
        n_iters: Sinkhorn iterations, each of the columns, then of the rows; with `tol`, the most. With Newton, the
            most steps at each epsilon it passes on its way down.
        tol: column error at which an item is done, relative; None runs all iterations, or Newton until rounding
            (1e-5 in float32, 1e-6 in float64). Sinkhorn looks at the columns every few iterations.
        method: "sinkhorn", or "newton" on the k potentials of the prototypes.
        gradient: "unrolled" is exact for the iterations run (and after Newton the same as "implicit"); "implicit" is
            that of the converged plan, cheaper, and off by a few per cent where the plan has not converged;
            "detached" lets none through the plan.
        token_mask: (... n) bool; a token with False carries no mass and its row is 0.
        row_mass: (... n) or (n) masses a, non-negative; default 1.
        col_mass: (... k) or (k) masses b, non-negative, of the same sum as a; default sum(a) / k.
        init: where to start, an earlier `Transport`, its (f, g), or its g (... k) or (k) alone: f follows from g. A
            constant to the gradient. Default f = 0.
        backend: "auto", "torch", or "triton", which raises where it cannot serve.

    Returns:
        `Transport`. The plan has the dtype of the tokens; it is solved in float32 (float64 for float64), also under
        autocast.

    Raises:
        ShapeError: for shapes that do not fit.
        ValueError: for epsilon, n_iters or tol not above 0, an unknown choice, or a backend that cannot serve.

    Examples:
        >>> import torch
        >>> from protoad.ops import sinkhorn
        >>> tokens = torch.eye(4)[[0, 0, 1, 1]]
        >>> plan = sinkhorn(tokens, torch.eye(4)[:2]).plan
        >>> plan.shape, plan.argmax(-1).tolist()
        (torch.Size([4, 2]), [0, 0, 1, 1])
    """
    check_choice("cost", cost, Cost)
    check_tokens_and_prototypes(tokens, prototypes)
    check_mask(token_mask, tokens)
    if token_mask is not None:
        kept = token_mask.to(solver_dtype(tokens))
        row_mass = kept if row_mass is None else row_mass * kept
    with full_precision(tokens):
        solved = sinkhorn_from_cost(
            _COSTS[cost](tokens, prototypes, backend=backend),
            epsilon=epsilon,
            n_iters=n_iters,
            tol=tol,
            method=method,
            gradient=gradient,
            row_mass=row_mass,
            col_mass=col_mass,
            init=init,
            backend=backend,
        )
    return solved._replace(plan=solved.plan.to(tokens.dtype))


def sinkhorn_from_cost(
    cost: Tensor,
    *,
    epsilon: float = 0.05,
    n_iters: int = 20,
    tol: float | None = None,
    method: Method = "sinkhorn",
    gradient: Gradient = "unrolled",
    row_mass: Tensor | None = None,
    col_mass: Tensor | None = None,
    init: Init | None = None,
    backend: Backend = "auto",
) -> Transport:
    """Gives the entropic optimal transport plan for a given cost; arguments as in `sinkhorn`.

    One iteration is g <- log b - LSE_n(f - C / epsilon), then f <- log a - LSE_k(g - C / epsilon), from f = 0:
    the order of POT, rows last, so that T 1 = a holds exactly and T P is a convex combination of prototypes.

    Args:
        cost: (... n k). Infinity forbids a pair; each token and each prototype needs one that is allowed.
        epsilon: entropic regularisation, in units of the cost.
        n_iters: iterations, or the most of them.
        tol: relative column error at which an item is done.
        method: "sinkhorn" or "newton".
        gradient: "unrolled", "implicit" or "detached".
        row_mass: (... n) or (n) masses a, non-negative; default 1.
        col_mass: (... k) or (k) masses b, non-negative, of the same sum as a; default sum(a) / k.
        init: an earlier `Transport`, its (f, g), or its g; default f = 0.
        backend: "auto", "torch" or "triton".

    Raises:
        ShapeError: for shapes that do not fit.
        ValueError: for epsilon, n_iters or tol not above 0, an unknown choice, or a backend that cannot serve.
    """
    if cost.ndim < 2 or 0 in cost.shape[-2:]:
        raise ShapeError(f"cost: expected (... n k) with n, k >= 1, got {tuple(cost.shape)}")
    check_positive(epsilon=epsilon, n_iters=n_iters, **({} if tol is None else {"tol": tol}))
    check_choice("method", method, Method)
    check_choice("gradient", gradient, Gradient)
    *leading, n, k = cost.shape
    solved = cost.to(solver_dtype(cost))
    rows = _fit("row_mass", row_mass, solved, (*leading, n))
    cols = _fit("col_mass", col_mass, solved, (*leading, k))
    start = _fit("init", _potential(init), solved, (*leading, k))
    if gradient == "detached":
        solved, rows, cols = solved.detach(), _detached(rows), _detached(cols)
    if exporting():
        return _exported(solved, rows, cols, start, epsilon, n_iters, plain=tol is None and method == "sinkhorn")
    solution = transport(
        solved,
        rows,
        cols,
        _detached(start),
        epsilon=epsilon,
        n_iters=n_iters,
        tol=tol,
        method=method,
        gradient=_needed(gradient, method, solved, rows, cols),
        backend=choose(backend, solved, n=n, k=k),
    )
    plan = solution.plan.to(cost.dtype)
    return Transport(plan, solution.f, solution.g, solution.iterations.amax(), solution.error)


def _exported(
    cost: Tensor,
    rows: Tensor | None,
    cols: Tensor | None,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    *,
    plain: bool,
) -> Transport:
    """The iteration in operators that ONNX and any other runtime know."""
    if not plain:
        raise ValueError("sinkhorn: expected a fixed number of iterations for export, got tol or method='newton'")
    return sinkhorn_reference(cost, epsilon=epsilon, n_iters=n_iters, row_mass=rows, col_mass=cols, init=init)


def _potential(init: Init | None) -> Tensor | None:
    if isinstance(init, Transport):
        return init.g
    return init[1] if isinstance(init, tuple) else init


def _fit(name: str, values: Tensor | None, cost: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    if values is None:
        return None
    if values.shape not in (shape, shape[-1:]):
        raise ShapeError(f"{name}: expected {shape} for cost {tuple(cost.shape)}, got {tuple(values.shape)}")
    return values.to(cost).expand(shape)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _needed(gradient: Gradient, method: Method, *inputs: Tensor | None) -> str:
    """Which gradient the operator is to be ready for: none if none can be asked for, since one takes memory."""
    if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in inputs):
        return "none"
    return "implicit" if method == "newton" else gradient
