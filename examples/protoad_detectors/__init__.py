"""Yardsticks and rivals of PIRN, composed from the public parts of protoad; `DETECTORS` makes each by its name."""

from collections.abc import Callable

from protoad.detection import Reconstructor
from protoad_detectors.asymmetric import ASTReconstructor
from protoad_detectors.btf import BTFReconstructor
from protoad_detectors.cfm import CFMReconstructor
from protoad_detectors.gaussian import GaussianReconstructor
from protoad_detectors.inp_former import INPFormerReconstructor
from protoad_detectors.m3dm import M3DMReconstructor
from protoad_detectors.nearest_neighbour import NearestNeighbourReconstructor
from protoad_detectors.padim import PaDiMReconstructor
from protoad_detectors.patchcore import PatchCoreReconstructor

__all__ = [
    "DETECTORS",
    "NEEDS_BOTH",
    "ASTReconstructor",
    "BTFReconstructor",
    "CFMReconstructor",
    "GaussianReconstructor",
    "INPFormerReconstructor",
    "M3DMReconstructor",
    "NearestNeighbourReconstructor",
    "PaDiMReconstructor",
    "PatchCoreReconstructor",
]

DETECTORS: dict[str, Callable[..., Reconstructor]] = {
    "nearest_neighbour": lambda dims, *, grid, seed: NearestNeighbourReconstructor(modalities=tuple(dims)),
    "gaussian": lambda dims, *, grid, seed: GaussianReconstructor(dims),
    "patchcore": lambda dims, *, grid, seed: PatchCoreReconstructor(tuple(dims), seed=seed),
    "btf": lambda dims, *, grid, seed: BTFReconstructor(dims, seed=seed),
    "m3dm": lambda dims, *, grid, seed: M3DMReconstructor(dims, seed=seed),
    "cfm": lambda dims, *, grid, seed: CFMReconstructor(dims, seed=seed),
    "inp_former": lambda dims, *, grid, seed: INPFormerReconstructor(dims, seed=seed),
    "ast": lambda dims, *, grid, seed: ASTReconstructor(dims, grid=grid, seed=seed),
    "padim": lambda dims, *, grid, seed: PaDiMReconstructor(dims, grid=grid, seed=seed),
}
"""Name -> what makes it, given d by modality, and by keyword the grid (tokens down, across) and a seed."""

NEEDS_BOTH = frozenset({"btf", "cfm", "m3dm"})
"""Those that say nothing of one modality without the other, as their attribute `needs_both` has it."""
