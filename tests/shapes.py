"""Organised clouds whose normals are known in closed form."""

from __future__ import annotations

import numpy as np

__all__ = ["camera_rays", "degrees", "seen_plane", "seen_sphere"]

FOCAL = 300.0


def camera_rays(height: int, width: int) -> np.ndarray:
    v, u = np.mgrid[:height, :width].astype(float)
    return np.stack([(u - (width - 1) / 2) / FOCAL, (v - (height - 1) / 2) / FOCAL, np.ones_like(u)], axis=-1)


def seen_plane(rays: np.ndarray, normal: tuple[float, float, float], distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of the plane through (0, 0, distance), and its normal on the camera's side."""
    unit = np.asarray(normal) / np.linalg.norm(normal)
    xyz = rays * (unit[2] * distance / (rays @ unit))[..., None]
    return xyz, np.broadcast_to(unit, rays.shape)


def seen_sphere(rays: np.ndarray, centre: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    middle = np.array([0, 0, centre])
    squared = (rays**2).sum(axis=-1)
    along = rays @ middle
    root = along**2 - squared * (centre**2 - radius**2)
    xyz = rays * ((along - np.sqrt(np.where(root >= 0, root, np.nan))) / squared)[..., None]
    return xyz, (xyz - middle) / radius


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cross = np.linalg.norm(np.cross(a.astype(float), b.astype(float)), axis=-1)
    return np.degrees(np.arctan2(cross, (a.astype(float) * b).sum(axis=-1)))
