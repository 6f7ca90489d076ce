"""A consistent sign for the normals of a point cloud."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["tangent_plane_signs"]

_NEIGHBOURS = 16  # of each point in the graph, the point itself counted
_CHUNK = 20_000  # points at a time: their neighbours fit the cache


def tangent_plane_signs(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Signs with which neighbouring normals agree (Hoppe et al., Surface Reconstruction from Unorganized Points, 1992).

    Walks along the minimum spanning tree of the graph of the 16 nearest neighbours, whose edges weigh
    1 - |n_i . n_j|: the sign passes over a crease only where no smooth way leads around it. Each connected part is
    turned so that most of its normals face the viewpoint. Points that coincide are one node.

    Args:
        points: (n 3) metres, the viewpoint at the origin.
        normals: (n 3) unit normals with any sign.

    Returns:
        (n) float64, 1 or -1.
    """
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

    if not len(points):
        return np.ones(0)
    nodes, first, node_of = np.unique(points, axis=0, return_index=True, return_inverse=True)
    directions = normals[first]
    tree = minimum_spanning_tree(_graph(nodes, directions))
    _, part_of = connected_components(tree, directed=False)
    signs = _pass_on(tree, part_of, directions)
    facing = np.sign(-(directions * nodes).sum(axis=1)) * signs
    signs *= np.where(np.bincount(part_of, weights=facing) < 0, -1, 1)[part_of]
    node_of = node_of.reshape(-1)  # some versions of numpy give it another shape
    apart = (normals * directions[node_of]).sum(axis=1) < 0
    return np.where(apart, -1, 1) * signs[node_of]


def _graph(points: np.ndarray, normals: np.ndarray) -> csr_array:
    """Weights between near neighbours, all 1 too large: zero would be no edge, and the spanning tree is the same."""
    from scipy.sparse import csr_array
    from scipy.spatial import cKDTree

    count, near = len(points), min(_NEIGHBOURS, len(points))
    tree = cKDTree(points)
    neighbours = np.empty((count, near), dtype=np.int64)
    weights = np.empty((count, near))
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        _, found = tree.query(points[rows], k=near)
        neighbours[rows] = found.reshape(-1, near)
        agreement = np.abs(np.einsum("nkc,nc->nk", normals[neighbours[rows]], normals[rows]))
        weights[rows] = 2 - np.minimum(agreement, 1)
    return csr_array((weights.ravel(), neighbours.ravel(), near * np.arange(count + 1)), shape=(count, count))


def _pass_on(tree: csr_array, part_of: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """The sign that each node gets from the first node of its part, along the tree."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order

    count = len(normals)
    firsts = np.unique(part_of, return_index=True)[1]
    edges = tree.tocoo()
    # one more node that holds all parts together: one walk, however many parts there are
    rows = np.concatenate([edges.row, np.full(len(firsts), count)])
    columns = np.concatenate([edges.col, firsts])
    joined = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count + 1, count + 1)).tocsr()
    _, ahead = breadth_first_order(joined, count, directed=False)
    ahead[count] = count
    signs = np.ones(count + 1)
    held = ahead[:-1] < count
    signs[:-1][held] = np.where((normals[held] * normals[ahead[:-1][held]]).sum(axis=1) < 0, -1, 1)
    while (ahead < count).any():  # each looks twice as far ahead as before
        signs, ahead = signs * signs[ahead], ahead[ahead]
    return signs[:-1]
