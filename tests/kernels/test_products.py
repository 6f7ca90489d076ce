"""The kernels along the feature axis, similarity and averages, against the formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from protoad_kernels import apply, similarity
from protoad_kernels.blocks import split_tokens
from torch import Tensor

SIZES = [
    (1, 1, 1, 1),
    (2, 7, 3, 5),
    (1, 63, 10, 64),
    (2, 65, 16, 100),
    (1, 196, 17, 33),
    (3, 130, 1, 70),
    (1, 64, 50, 64),
    (1, 100, 100, 65),
    (1, 300, 128, 48),
    (2, 70, 150, 40),
    (2, 256, 10, 768),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
sharing = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


def _close(one: Tensor, exact: Tensor, dtype: torch.dtype, terms: int) -> None:
    """Within rounding: of the sum's terms in float32, and of the result in its dtype."""
    scale = exact.abs().amax().clamp_min(0.1).item()  # at least the size of what cancels in a gradient of 0
    assert one.dtype == dtype
    tolerance = (torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * (4 + terms**0.5)) * scale
    torch.testing.assert_close(one.double().cpu(), exact.detach().cpu(), rtol=0, atol=tolerance)


def _make(size: tuple[int, ...], dtype: torch.dtype, shared: bool, device: str) -> dict[str, Tensor]:
    b, n, k, d = size
    generator = torch.Generator().manual_seed(sum(size))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    prototypes = normal(1 if shared else b, k, d)
    plan = torch.rand((b, k, n), generator=generator)
    return {
        "tokens": normal(b, n, d).to(dtype).to(device),
        "directions": torch.nn.functional.normalize(prototypes, dim=-1).to(device),
        "prototypes": prototypes.to(dtype).to(device),
        "plan": plan.to(device),
        "of_plan": normal(b, k, n).to(device),
        "of_tokens": normal(b, n, d).to(dtype).to(device),
        "of_prototypes": normal(b, k, d).to(dtype).to(device),
    }


def _exact(function: Callable[..., Tensor], inputs: list[Tensor], weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The formula and its gradients by autograd, in float64."""
    doubles = [one.double().requires_grad_() for one in inputs]
    value = function(*doubles)
    return value, list(torch.autograd.grad((value * weights.double()).sum(), doubles))


def _cosine(tokens: Tensor, directions: Tensor) -> Tensor:
    return directions @ (tokens / tokens.norm(dim=-1, keepdim=True)).mT


def _context(plan: Tensor, tokens: Tensor) -> Tensor:
    return plan @ tokens / plan.sum(-1, keepdim=True)


@sizes
@dtypes
@sharing
def test_similarity_and_its_gradients(size, dtype, shared, device) -> None:
    x = _make(size, dtype, shared, device)
    b, n, _, d = size
    value, (of_tokens, of_directions) = _exact(_cosine, [x["tokens"], x["directions"]], x["of_plan"])
    result, inverse = similarity.similarity_forward(x["tokens"], x["directions"])
    _close(result, value, torch.float32, d)
    torch.testing.assert_close(inverse.double(), 1 / x["tokens"].double().norm(dim=-1), rtol=1e-6, atol=0)
    grads = similarity.similarity_backward(x["of_plan"], x["tokens"], x["directions"], result, inverse)
    _close(grads[0], of_tokens, dtype, d)
    _close(grads[1], of_directions, torch.float32, b * n)


@sizes
@dtypes
@sharing
def test_reconstruction_and_its_gradients(size, dtype, shared, device) -> None:
    x = _make(size, dtype, shared, device)
    b, n, k, d = size
    value, (of_plan, of_prototypes) = _exact(
        lambda plan, prototypes: plan.mT @ prototypes, [x["plan"], x["prototypes"]], x["of_tokens"]
    )
    _close(apply.reconstruct_forward(x["plan"], x["prototypes"]), value, dtype, k)
    grads = apply.reconstruct_backward(x["of_tokens"], x["plan"], x["prototypes"])
    _close(grads[0], of_plan, torch.float32, d)
    _close(grads[1], of_prototypes, dtype, b * n)


@sizes
@dtypes
def test_context_and_its_gradients(size, dtype, device) -> None:
    x = _make(size, dtype, False, device)
    _, n, k, d = size
    value, (of_plan, of_tokens) = _exact(_context, [x["plan"], x["tokens"]], x["of_prototypes"])
    result, mass = apply.context_forward(x["plan"], x["tokens"])
    _close(result, value, dtype, n)
    torch.testing.assert_close(mass, x["plan"].sum(-1))
    grads = apply.context_backward(x["of_prototypes"], x["plan"], x["tokens"], result, mass)
    # The context that comes back in, rounded to its dtype, is part of the gradient.
    _close(grads[0], of_plan, torch.float32, d + 4 * (torch.finfo(dtype).eps / torch.finfo(torch.float32).eps) ** 2)
    _close(grads[1], of_tokens, dtype, k)


def test_zero_tokens_have_no_direction_and_no_gradient(device) -> None:
    x = _make((2, 70, 10, 40), torch.float32, True, device)
    x["tokens"][1, 5] = 0
    result, inverse = similarity.similarity_forward(x["tokens"], x["directions"])
    assert (result[1, :, 5] == 0).all()
    assert inverse[1, 5] == 0
    grads = similarity.similarity_backward(x["of_plan"], x["tokens"], x["directions"], result, inverse)
    assert (grads[0][1, 5] == 0).all()
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_nan_comes_out_where_it_went_in(device) -> None:
    x = _make((2, 70, 10, 40), torch.float32, True, device)
    x["tokens"][1, 5, 3] = torch.nan
    result, _ = similarity.similarity_forward(x["tokens"], x["directions"])
    assert result[1, :, 5].isnan().all()
    result[1, :, 5] = 0
    assert torch.isfinite(result).all()


def test_an_item_without_mass_has_a_zero_context_and_finite_gradients(device) -> None:
    x = _make((2, 70, 10, 40), torch.float32, False, device)
    x["plan"][0] = 0
    result, mass = apply.context_forward(x["plan"], x["tokens"])
    assert (result[0] == 0).all()
    grads = apply.context_backward(x["of_prototypes"], x["plan"], x["tokens"], result, mass)
    assert (grads[0][0] == 0).all()
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_two_runs_agree_to_the_bit(device) -> None:
    x = _make((2, 300, 17, 100), torch.float32, True, device)
    runs = []
    for _ in range(2):
        result, inverse = similarity.similarity_forward(x["tokens"], x["directions"])
        context, mass = apply.context_forward(x["plan"], x["tokens"])
        runs.append(
            [
                result,
                *similarity.similarity_backward(x["of_plan"], x["tokens"], x["directions"], result, inverse),
                *apply.reconstruct_backward(x["of_tokens"], x["plan"], x["prototypes"]),
                context,
                *apply.context_backward(x["of_prototypes"], x["plan"], x["tokens"], context, mass),
            ]
        )
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("programs", [1, 12, 100, 264, 5000])
@pytest.mark.parametrize("n", [1, 31, 64, 65, 300, 4096, 100_000])
def test_splits_cover_all_tokens_and_none_is_empty(n, programs) -> None:
    splits, chunk = split_tokens(n, 32, programs)
    assert chunk % 32 == 0
    assert (splits - 1) * chunk < n <= splits * chunk
    # Each split is another partial sum: a full GPU needs one, and none is worth less than two blocks.
    assert splits == 1 if programs >= 264 else splits <= -(-n // 64)
