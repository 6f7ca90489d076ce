"""The defects of the procedural scenes: each function changes a good surface in one place, small or large.

Sizes are shares of the part's visible area, strengths run from subtle to clear; both are drawn per defect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from protoad.data.synthetic_scene import Image, Rig, Surface, mix, noise, smoothstep

__all__ = ["DEFECTS", "draw_defect"]

_FLOOR = 0.0008  # metres over the table that nothing cuts below


class Spot(NamedTuple):
    """A defect's own coordinates u, v (y x) in metres, and the radius in metres of a disc of the defect's area."""

    u: Image
    v: Image
    radius: float


def draw_defect(kind: str, surface: Surface, camera: Rig, rng: np.random.Generator, *, growth: float) -> Surface:
    """The surface with one random defect of that kind; `growth` multiplies its area."""
    share = float(np.exp(rng.uniform(np.log(0.03), np.log(0.09)))) * growth
    return DEFECTS[kind](surface, _choose_spot(surface, camera, rng, share), rng)


def _bump(surface: Surface, spot: Spot, rng: np.random.Generator) -> Surface:
    """A dome of material; the colour stays."""
    return surface._replace(height=surface.height + _swelling(surface, spot, rng))


def _dent(surface: Surface, spot: Spot, rng: np.random.Generator) -> Surface:
    """A pressed-in place; the colour stays."""
    deep = surface.height - _swelling(surface, spot, rng)
    return surface._replace(height=np.maximum(deep, np.minimum(surface.height, _FLOOR)))


def _hole(surface: Surface, spot: Spot, rng: np.random.Generator) -> Surface:
    """Material missing down to a rough and dark ground."""
    spot = spot._replace(radius=0.70 * spot.radius)
    inside = smoothstep(1.08, 0.86, _blob(spot, rng, rough=0.22)) * (surface.cover > 0.5)
    left = rng.uniform(0.25, 0.80)
    ground = surface.height * left + 0.0004 * noise(rng, spot.u, spot.v, scale=0.004)
    height = surface.height + (np.maximum(ground, _FLOOR) - surface.height) * inside
    albedo = mix(surface.albedo, surface.albedo * np.float32(rng.uniform(0.3, 0.75)), inside)
    return surface._replace(height=height, albedo=albedo, gloss=surface.gloss * (1 - inside))


def _cut(surface: Surface, spot: Spot, rng: np.random.Generator) -> Surface:
    """A thin curved groove, a little darker at its ground."""
    length, width = spot.radius * rng.uniform(2.0, 3.4), rng.uniform(0.0010, 0.0019)
    bow = rng.normal(0, 0.18) / spot.radius
    away = np.abs(spot.v - bow * spot.u**2 - 0.0004 * noise(rng, spot.u, spot.v, scale=0.005))
    tapered = width * np.sqrt(np.clip(1 - (2 * spot.u / length) ** 2, 0, 1)) + 1e-7
    groove = smoothstep(1.25, 0.35, away / tapered) * (np.abs(spot.u) < length / 2) * (surface.cover > 0.5)
    deep = surface.height - rng.uniform(0.0008, 0.0026) * groove
    albedo = mix(surface.albedo, surface.albedo * np.float32(rng.uniform(0.45, 0.9)), groove)
    return surface._replace(height=np.maximum(deep, np.minimum(surface.height, _FLOOR)), albedo=albedo)


def _color(surface: Surface, spot: Spot, rng: np.random.Generator) -> Surface:
    """A stain: another hue, or a burnt or bleached place; the geometry stays."""
    inside = smoothstep(1.15, 0.65, _blob(spot, rng, rough=0.3)) * rng.uniform(0.45, 0.80)
    inside = inside * np.clip(0.92 + 0.16 * noise(rng, spot.u, spot.v, scale=0.003), 0, 1.1)
    local = np.average(surface.albedo, axis=(0, 1), weights=inside + 1e-9)
    stained = _foreign_colour(local, rng, contrast=rng.uniform(0.19, 0.38))
    return surface._replace(albedo=mix(surface.albedo, stained.astype(np.float32), inside))


def _contamination(surface: Surface, spot: Spot, rng: np.random.Generator) -> Surface:
    """Foreign bits that lie on the part: one curled fibre, or a few grains."""
    spot = spot._replace(radius=0.8 * spot.radius)
    bits = _fibre(spot, rng) if rng.uniform() < 0.5 else _grains(spot, rng)
    present = smoothstep(0.0, 0.0004, bits) * (surface.cover > 0.5)
    local = np.average(surface.albedo, axis=(0, 1), weights=present + 1e-9)
    foreign = _foreign_colour(local, rng, contrast=rng.uniform(0.14, 0.40))
    return surface._replace(
        height=surface.height + np.clip(bits, 0, None) * (surface.cover > 0.5),
        albedo=mix(surface.albedo, foreign.astype(np.float32), present),
        gloss=surface.gloss * (1 - present) + np.float32(rng.uniform(0.02, 0.12)) * present,
    )


DEFECTS: dict[str, Callable[[Surface, Spot, np.random.Generator], Surface]] = {
    "bump": _bump,
    "dent": _dent,
    "hole": _hole,
    "cut": _cut,
    "color": _color,
    "contamination": _contamination,
}


def _choose_spot(surface: Surface, camera: Rig, rng: np.random.Generator, share: float) -> Spot:
    """A random place on the part, not so near to its outline that most of the defect would fall off."""
    from scipy.ndimage import distance_transform_edt

    part = surface.cover > 0.5
    room = distance_transform_edt(part)
    radius = float(np.sqrt(share * part.sum() / np.pi))
    near = np.flatnonzero(room >= min(0.7 * radius, 0.7 * room.max()))
    at = int(near[int(rng.uniform() * len(near))])
    turn = rng.uniform(0, 2 * np.pi)
    u, v = camera.u - camera.u.flat[at], camera.v - camera.v.flat[at]
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return Spot(cos * u + sin * v, cos * v - sin * u, radius * camera.pixel)


def _blob(spot: Spot, rng: np.random.Generator, *, rough: float) -> Image:
    """Distance from the centre of an irregular oval, 1 on its outline."""
    stretch = np.sqrt(rng.uniform(1.0, 2.0))
    oval = np.hypot(spot.u / stretch, spot.v * stretch) / spot.radius
    outline = rough * noise(rng, spot.u, spot.v, scale=1.1 * spot.radius, octaves=2)
    return oval * (1 + np.clip(outline, -0.32, 0.32) * np.clip(oval, 0, 1))  # clipped: a blob must not fall apart


def _swelling(surface: Surface, spot: Spot, rng: np.random.Generator) -> Image:
    """A dome with a marked shoulder that fades out at the part's outline, in metres.

    On a rough part it is higher: what drowns in the relief is no defect to an inspector either.
    """
    away = _blob(spot, rng, rough=0.10)
    near = (away < 1) & (surface.cover > 0.5)
    plane = np.stack([spot.u[near], spot.v[near], np.ones(near.sum(), dtype=np.float32)], axis=-1)
    fitted = plane @ np.linalg.lstsq(plane, surface.height[near], rcond=None)[0]
    amplitude = rng.uniform(0.0008, 0.0024) + min(1.4 * float(np.std(surface.height[near] - fitted)), 0.003)
    return amplitude * np.exp(-0.3 * away**2 - 1.1 * away**6) * smoothstep(0.4, 0.6, surface.cover)


def _foreign_colour(local: Image, rng: np.random.Generator, *, contrast: float) -> Image:
    """A random colour whose square-root intensities lie `contrast` (of 1) away from the local one."""
    start = np.sqrt(local)
    colour = start
    for _ in range(20):
        step = rng.normal(0, 1, 3)
        colour = np.clip(start + contrast * step / np.linalg.norm(step), 0.03, 0.97)
        if np.linalg.norm(colour - start) > 0.8 * contrast:
            break
    return colour**2


def _fibre(spot: Spot, rng: np.random.Generator) -> Image:
    """Height of a curled thread, negative beside it."""
    thick = rng.uniform(0.0006, 0.0010)
    steps = np.linspace(-1, 1, 24)
    heading = rng.uniform(0, 2 * np.pi) + 1.6 * np.cumsum(rng.normal(0, 0.35, 24)) * 0.5
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)]) * (3.2 * spot.radius / 24), axis=1)
    path -= path.mean(axis=1, keepdims=True)
    away = np.full(spot.u.shape, np.inf, dtype=np.float32)
    for index in range(len(steps) - 1):
        np.minimum(away, _segment_distance(spot, path[:, index], path[:, index + 1]), out=away)
    return np.where(away < thick, 0.0005 + np.sqrt(np.clip(thick**2 - away**2, 0, None)), -1.0).astype(np.float32)


def _segment_distance(spot: Spot, start: Image, end: Image) -> Image:
    along = (end - start).astype(np.float32)
    u, v = spot.u - np.float32(start[0]), spot.v - np.float32(start[1])
    t = np.clip((u * along[0] + v * along[1]) / (along @ along), 0, 1)
    return np.hypot(u - t * along[0], v - t * along[1])


def _grains(spot: Spot, rng: np.random.Generator) -> Image:
    """Height of three to six grains, negative beside them."""
    wobble = 1 + 0.15 * noise(rng, spot.u, spot.v, scale=0.0015)
    tallest = np.full(spot.u.shape, -1.0, dtype=np.float32)
    for _ in range(int(rng.integers(3, 7))):
        u, v = rng.normal(0, 0.55 * spot.radius, 2)
        radius = rng.uniform(0.22, 0.42) * spot.radius
        inside = 1 - (np.hypot(spot.u - u, spot.v - v) * wobble / radius) ** 2
        height = np.where(inside > 0, 0.0003 + 0.8 * radius * np.sqrt(np.clip(inside, 0, None)), -1.0)
        np.maximum(tallest, height, out=tallest)
    return tallest
