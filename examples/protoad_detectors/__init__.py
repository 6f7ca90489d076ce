"""Yardsticks and rivals of PIRN, one file each, composed from the public parts of protoad."""

from protoad_detectors.gaussian import GaussianReconstructor
from protoad_detectors.nearest_neighbour import NearestNeighbourReconstructor

__all__ = ["GaussianReconstructor", "NearestNeighbourReconstructor"]
