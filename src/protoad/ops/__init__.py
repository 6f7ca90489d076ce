"""Functions on tensors: what the modules of `protoad.nn` compute."""

from protoad.ops._types import Transport
from protoad.ops.assignment import (
    linear_plan,
    sigmoid_plan,
    softmax_plan,
    transport_context,
    transport_reconstruct,
)
from protoad.ops.coreset import greedy_coreset
from protoad.ops.kmeans import kmeans
from protoad.ops.precision import unit
from protoad.ops.sinkhorn import cosine_cost, sinkhorn, sinkhorn_from_cost

__all__ = [
    "Transport",
    "cosine_cost",
    "greedy_coreset",
    "kmeans",
    "linear_plan",
    "sigmoid_plan",
    "sinkhorn",
    "sinkhorn_from_cost",
    "softmax_plan",
    "transport_context",
    "transport_reconstruct",
    "unit",
]
