"""Assigning tokens to prototypes: balanced transport (paper Eqs. 1-2) and the rivals of Table 9, one interface."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from protoad.ops import (
    linear_plan,
    sigmoid_plan,
    sinkhorn,
    softmax_plan,
    transport_context,
    transport_reconstruct,
)
from protoad.ops._checks import check_choice, check_mask, check_positive, check_tokens_and_prototypes
from protoad.ops._types import Backend, Cost, Gradient, Method

__all__ = ["Assignment", "AttentionAssign", "LinearAssign", "SigmoidAssign", "SinkhornAssign", "SoftmaxAssign"]


class Assignment(NamedTuple):
    """Which tokens belong to which prototypes, and both averages that follow from it.

    Attributes:
        plan: (b n k) shares of each token; masked tokens have none.
        reconstruction: (b n d) tokens made of prototypes, T P (Eq. 2).
        context: (b k d) each prototype's weighted mean of its tokens, T column-normalised (section 3.3).
    """

    plan: Tensor
    reconstruction: Tensor
    context: Tensor


class _Assign(nn.Module):
    """What all assignments share: a plan, and what follows from it."""

    backend: Backend = "auto"

    def plan(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Gives the plan (b n k) alone; arguments as in `forward`."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Assignment:
        """Assigns tokens to prototypes.

        Args:
            tokens: (b n d), Z in the paper.
            prototypes: (k d) shared, or (b k d) one codebook per item, P in the paper.
            token_mask: (b n) bool, True for tokens that count.

        Returns:
            `Assignment`.

        Raises:
            ShapeError: for shapes that do not fit.
        """
        plan = self.plan(tokens, prototypes, token_mask)
        return Assignment(
            plan,
            transport_reconstruct(plan, prototypes, backend=self.backend),
            transport_context(plan, tokens, backend=self.backend),
        )


class SinkhornAssign(_Assign):
    """Balanced assignment by entropic optimal transport (BPA, paper Eqs. 1-2).

        T* = argmin_T <T, C> - epsilon H(T),  T 1 = 1,  T^T 1 = n/k,  C_nk = 1 - cos(z_n, p_k);  Z_bpa = T* P

    Every prototype receives the same mass, so none goes unused. With a `token_mask` the kept tokens share the
    prototypes: b = (kept tokens) / k.

    Args:
        epsilon: entropic regularisation on the cost; the paper gives none, 0.05 suits the cosine cost in [0, 2].
        n_iters: Sinkhorn iterations, the rows last, so that a reconstruction is a convex combination; with `tol`, or
            for Newton at each epsilon, the most.
        tol: relative error of the columns at which an item is done; None runs all iterations.
        method: "sinkhorn", or "newton" for the converged plan.
        cost: "cosine" or "sqeuclidean".
        gradient: "unrolled", exact for these iterations, "implicit", that of the converged plan, or "detached".
        backend: "auto", "torch" or "triton".

    Note:
        Solved in float32 (float64 for float64), also under autocast. Holds no parameters.

    Examples:
        >>> import torch
        >>> from protoad.nn import SinkhornAssign
        >>> _ = torch.manual_seed(0)
        >>> tokens, prototypes = torch.randn(2, 196, 32), torch.randn(10, 32)
        >>> assign = SinkhornAssign(epsilon=0.05, n_iters=100)
        >>> plan, reconstruction, context = assign(tokens, prototypes)
        >>> plan.shape, reconstruction.shape, context.shape
        (torch.Size([2, 196, 10]), torch.Size([2, 196, 32]), torch.Size([2, 10, 32]))
        >>> torch.allclose(plan.sum(2), torch.ones(2, 196))     # every token is shared out whole
        True
        >>> torch.allclose(plan.sum(1), torch.full((2, 10), 19.6), rtol=1e-3)   # every prototype gets as much
        True
    """

    def __init__(
        self,
        *,
        epsilon: float = 0.05,
        n_iters: int = 20,
        tol: float | None = None,
        method: Method = "sinkhorn",
        cost: Cost = "cosine",
        gradient: Gradient = "unrolled",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check_positive(epsilon=epsilon, n_iters=n_iters, **({} if tol is None else {"tol": tol}))
        for name, value, choices in (
            ("cost", cost, Cost),
            ("method", method, Method),
            ("gradient", gradient, Gradient),
        ):
            check_choice(name, value, choices)
        check_choice("backend", backend, Backend)
        self.epsilon, self.n_iters, self.tol = epsilon, n_iters, tol
        self.method, self.cost, self.gradient, self.backend = method, cost, gradient, backend

    def plan(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        return sinkhorn(
            tokens,
            prototypes,
            cost=self.cost,
            epsilon=self.epsilon,
            n_iters=self.n_iters,
            tol=self.tol,
            method=self.method,
            gradient=self.gradient,
            token_mask=token_mask,
            backend=self.backend,
        ).plan

    def extra_repr(self) -> str:
        names = ("epsilon", "n_iters", "tol", "method", "cost", "gradient", "backend")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class SoftmaxAssign(_Assign):
    """Softmax attention over prototypes, softmax_k(cos / epsilon): unbalanced (paper Table 9).

    Args:
        epsilon: temperature on the cosine.

    Examples:
        >>> import torch
        >>> assign = SoftmaxAssign(epsilon=0.1)
        >>> assign(torch.randn(1, 5, 8), torch.randn(3, 8)).plan.shape
        torch.Size([1, 5, 3])
    """

    def __init__(self, *, epsilon: float = 0.05) -> None:
        super().__init__()
        check_positive(epsilon=epsilon)
        self.epsilon = epsilon

    def plan(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        return softmax_plan(tokens, prototypes, epsilon=self.epsilon, token_mask=token_mask)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}"


class LinearAssign(_Assign):
    """Linear attention over prototypes, phi = elu + 1, row-normalised: unbalanced (paper Table 9).

    Examples:
        >>> import torch
        >>> LinearAssign()(torch.randn(1, 5, 8), torch.randn(3, 8)).plan.shape
        torch.Size([1, 5, 3])
    """

    def plan(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        return linear_plan(tokens, prototypes, token_mask=token_mask)


class SigmoidAssign(_Assign):
    """Sigmoid attention over prototypes, sigmoid(cos / epsilon): unbalanced (paper Table 9).

    Args:
        epsilon: temperature on the cosine.
        normalise: whether each row sums to 1.

    Examples:
        >>> import torch
        >>> SigmoidAssign(epsilon=0.1)(torch.randn(1, 5, 8), torch.randn(3, 8)).plan.shape
        torch.Size([1, 5, 3])
    """

    def __init__(self, *, epsilon: float = 0.05, normalise: bool = True) -> None:
        super().__init__()
        check_positive(epsilon=epsilon)
        self.epsilon, self.normalise = epsilon, normalise

    def plan(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        return sigmoid_plan(tokens, prototypes, epsilon=self.epsilon, normalise=self.normalise, token_mask=token_mask)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}, normalise={self.normalise}"


class AttentionAssign(_Assign):
    """Plain cross-attention with learned projections, softmax_k(z W_Q (p W_K)^T / sqrt(d)) and values p W_V.

    What stands in the place of balanced transport where the paper switches BPA off (Table 2): unbalanced, and what is
    rebuilt is made of projected prototypes, not of the prototypes themselves.

    Args:
        dim: d, channels of a token.

    Examples:
        >>> import torch
        >>> AttentionAssign(8)(torch.randn(1, 5, 8), torch.randn(3, 8)).reconstruction.shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)

    def plan(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        check_tokens_and_prototypes(tokens, prototypes)
        check_mask(token_mask, tokens)
        logits = self.query(tokens) @ self.key(prototypes).mT / self.dim**0.5
        plan = logits.softmax(-1)
        return plan if token_mask is None else torch.where(token_mask.unsqueeze(-1), plan, torch.zeros_like(plan))

    def forward(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Assignment:
        plan = self.plan(tokens, prototypes, token_mask)
        rebuilt = transport_reconstruct(plan, self.value(prototypes), backend=self.backend)
        return Assignment(plan, rebuilt, transport_context(plan, tokens, backend=self.backend))

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
