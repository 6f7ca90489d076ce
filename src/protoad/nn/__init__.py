"""Modules to build detectors from: each stores parameters and arguments, and calls `protoad.ops`."""

from protoad.nn.aggregation import GlobalMeanAggregate, TopKAggregate, TransportAggregate
from protoad.nn.assignment import (
    Assignment,
    AttentionAssign,
    LinearAssign,
    SigmoidAssign,
    SinkhornAssign,
    SoftmaxAssign,
)
from protoad.nn.cross_attention import GatedProtoCrossAttention
from protoad.nn.graph import AlignedPrototypes, CrossModalPrototypeGAT
from protoad.nn.guard import PrototypeGuard
from protoad.nn.refinement import GRUPrototypeRefiner

__all__ = [
    "AlignedPrototypes",
    "Assignment",
    "AttentionAssign",
    "CrossModalPrototypeGAT",
    "GRUPrototypeRefiner",
    "GatedProtoCrossAttention",
    "GlobalMeanAggregate",
    "LinearAssign",
    "PrototypeGuard",
    "SigmoidAssign",
    "SinkhornAssign",
    "SoftmaxAssign",
    "TopKAggregate",
    "TransportAggregate",
]
