"""The parts of the procedural scenes: each function returns one good part's surface.

A part has a design and a realisation. The design (`look`) is the product: nominal colours, texture scale, number of
holes, the same for every part of a dataset. The realisation (`rng`) is what differs from part to part.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from protoad.data.synthetic_scene import Image, Pose, Surface, linear, mix, noise, smoothstep

__all__ = ["PARTS", "Part"]

Draw = Callable[[Pose, np.random.Generator, np.random.Generator], Surface]


class Part(NamedTuple):
    """How to draw a part, how far it may lie turned, in rad, and its half width and height in metres."""

    draw: Draw
    max_angle: float
    half_size: tuple[float, float]


def cookie(pose: Pose, rng: np.random.Generator, look: np.random.Generator) -> Surface:
    """A round biscuit: bumpy dough, cracks, browned rim, and chocolate chips anywhere."""
    dough, rim, chip = (_dye(look, code) for code in ("d9a866", "9c6430", "4a2a1a"))
    grain = look.uniform(0.9, 1.2)
    chips = int(look.integers(9, 13)) + int(rng.integers(-1, 2))
    x, y = pose.x, pose.y
    radius, turn = np.hypot(x, y), np.arctan2(y, x)
    edge = radius - 0.0335 * (1 + _wobble(rng, turn, 0.012))
    lumps = noise(rng, x, y, scale=0.0065 * grain, octaves=3, gain=0.55)
    cracks = smoothstep(0.16, 0.0, np.abs(noise(rng, x, y, scale=0.012, octaves=2))) * smoothstep(-0.004, -0.012, edge)
    height = 0.0135 - 0.0025 * (radius / 0.0335) ** 2 - _rounding(edge, 0.006) + 0.00045 * lumps - 0.0005 * cracks
    chocolate = _scatter(rng, x, y, count=chips, reach=0.027, radii=(0.0024, 0.0037))
    melted = smoothstep(0, 0.3, chocolate)
    height = height + 0.0013 * np.sqrt(np.clip(chocolate, 0, 1))
    baked = np.clip(smoothstep(-0.012, 0.0, edge) + 0.22 * noise(rng, x, y, scale=0.009, octaves=2), 0, 1)
    albedo = mix(dough, rim, baked * rng.uniform(0.75, 1.0)) * (1 + 0.06 * lumps - 0.25 * cracks)[..., None]
    albedo = mix(albedo * _tone(rng), chip * _tone(rng), melted)
    return _surface(pose, edge, height, albedo, 0.02 + 0.10 * melted)


def tile(pose: Pose, rng: np.random.Generator, look: np.random.Generator) -> Surface:
    """A flat glazed tile with a printed and slightly raised pattern, a cracked glaze, and specks of iron."""
    ground, print_a, print_b = (_dye(look, code) for code in ("e6e0d0", "2f6690", "c8803a"))
    period = 0.0165 * look.uniform(0.9, 1.1)
    x, y = pose.x, pose.y
    edge = _rounded_box(x, y, 0.034, 0.034, 0.002)
    shift = rng.normal(0, 0.0005, 2)
    warp = 0.00025 * noise(rng, x, y, scale=0.01)
    u, v = (x + shift[0] + warp) * (2 * np.pi / period), (y + shift[1] - warp) * (2 * np.pi / period)
    soft = 2 * np.pi / period * 0.0007  # printed edges are about 0.7 mm wide
    lattice = np.abs(np.cos(u / 2) * np.cos(v / 2)) - np.abs(np.sin(u / 2) * np.sin(v / 2))
    petals = smoothstep(-soft, soft, lattice - 0.34)
    dots = smoothstep(-soft, soft, -np.cos(u) * 0.5 - np.cos(v) * 0.5 - 0.62)
    glaze = noise(rng, x, y, scale=0.008, octaves=3)
    cracked = smoothstep(0.10, 0.0, np.abs(noise(rng, x, y, scale=0.011, octaves=2))) * smoothstep(
        -0.2, 0.6, noise(rng, x, y, scale=0.02)
    )
    iron = smoothstep(0, 0.5, _scatter(rng, x, y, count=9, reach=0.045, radii=(0.0006, 0.0015)))
    height = 0.0095 - _rounding(edge, 0.0018) + 0.0007 * petals - 0.0006 * dots + 0.00008 * glaze - 0.0003 * iron
    height += 0.0005 * noise(rng, x, y, scale=0.05)  # kilns warp
    ink = rng.uniform(0.8, 0.98)
    albedo = mix(ground * _tone(rng), print_a, ink * petals * np.clip(0.91 + 0.09 * glaze, 0, 1))
    albedo = mix(albedo, print_b, ink * dots) * (1 + 0.05 * glaze - 0.25 * cracked - 0.5 * iron)[..., None]
    return _surface(pose, edge, height, albedo, np.full_like(x, 0.28))


def peach(pose: Pose, rng: np.random.Generator, look: np.random.Generator) -> Surface:
    """A smooth round fruit: yellow with a red cheek that sits elsewhere each time, a seam, and a stem hollow."""
    yellow, red, stem = (_dye(look, code) for code in ("e8ad55", "b23a34", "4d3a22"))
    x, y = pose.x, pose.y
    turn = np.arctan2(y, x)
    size = 0.0325 * (1 + _wobble(rng, turn, 0.014))
    radius = np.hypot(x, y)
    edge = radius - size
    dome = size * np.sqrt(np.clip(1 - (radius / size) ** 2, 0, 1))
    bend = 0.05 * np.sin(y * 60 + rng.uniform(0, 6.28)) * 0.03
    seam = np.exp(-(((x - bend) / 0.0021) ** 2)) * smoothstep(0.028, -0.01, y)
    hollow_y = -0.011 + rng.normal(0, 0.0012)
    hollow = np.exp(-(x**2 + (y - hollow_y) ** 2) / 0.0052**2)
    height = 0.013 + 0.72 * dome - 0.0010 * seam - 0.0042 * hollow
    height += 0.0006 * noise(rng, x, y, scale=0.018) + 0.00007 * noise(rng, x, y, scale=0.0022)
    cheek_at = rng.uniform(0, 2 * np.pi)
    cheek = (x * np.cos(cheek_at) + y * np.sin(cheek_at)) / 0.02 + 0.55 * noise(rng, x, y, scale=0.016, octaves=2)
    streaks = noise(rng, 3.0 * x, y, scale=0.006, octaves=2)
    blush = smoothstep(-0.9, 1.1, cheek + 0.22 * streaks + rng.normal(0, 0.15)) * rng.uniform(0.78, 0.95)
    albedo = mix(yellow, red, blush) * _tone(rng) * (1 + 0.035 * noise(rng, x, y, scale=0.0016))[..., None]
    woody = smoothstep(0.0019, 0.0012, np.hypot(x, y - hollow_y))
    albedo = mix(albedo * (1 - 0.12 * seam - 0.35 * hollow)[..., None], stem, woody)
    return _surface(pose, edge, height + 0.0012 * woody, albedo, np.full_like(x, 0.035))


def gland(pose: Pose, rng: np.random.Generator, look: np.random.Generator) -> Surface:
    """A cable gland lying on its side: thread, collar, hexagon, knurled nut and spout, each rolled at random."""
    body, nut, seal = (_dye(look, code, 0.5) for code in ("a9adb0", "5f6c78", "24262a"))
    pitch = 0.0030 * look.uniform(0.9, 1.15)
    ridges = int(look.integers(22, 30))
    x, y = pose.x, pose.y
    slide = rng.normal(0, 0.0007)  # how far the nut is screwed on
    roll = rng.uniform(0, 2 * np.pi, 3)
    ends = np.array([-0.045, -0.021, -0.0165, 0.0005, 0.0025 + slide, 0.0265 + slide, 0.043])
    radii = (0.0115, 0.0158, 0.0140, 0.0118, 0.0142, 0.0092)
    sections = [(x >= low) & (x < high) for low, high in pairwise(ends)]
    core = np.select(sections, radii, 0.0001)
    around = np.arcsin(np.clip(y / core, -1, 1))
    turns = x / pitch + (around + roll[0]) / (2 * np.pi)
    thread = 0.0009 * (np.abs(2 * (turns % 1) - 1) - 0.5)
    knurl = 0.00055 * np.sin(ridges * (around + roll[1]))
    knurl = knurl * smoothstep(0, 0.002, x - ends[4]) * smoothstep(0, 0.003, ends[5] - x)
    core = core + np.select([sections[0], sections[4]], [thread, knurl], 0.0)
    core = core - 0.0012 * smoothstep(-0.003, 0, x - ends[5]) * sections[4]
    core = (
        core - 0.0035 * smoothstep(-0.012, 0, x - ends[6]) * sections[5] - 0.0012 * smoothstep(0.0015, 0, x - ends[0])
    )
    arc = np.sqrt(np.clip(core**2 - y**2, 0, None))
    hexagon = np.clip(_hexagon_top(y, 0.0136, roll[2]), 0, None)
    reach = np.where(sections[2], 0.0152, core)
    arc = np.where(sections[2], hexagon, arc)
    edge = np.maximum(np.maximum(np.abs(y) - reach, ends[0] - x), x - ends[6])
    edge = np.where(sections[2] & (hexagon <= 0), np.maximum(edge, pose.pixel), edge)
    worn = noise(rng, x, y, scale=0.007, octaves=3)
    albedo = (
        np.select([s[..., None] for s in sections], [body, body, body, seal, nut, nut], np.float32(0.5))
        * (1 + 0.05 * worn + 0.03 * noise(rng, x / 6, y, scale=0.0011))[..., None]
    )
    gloss = np.select(sections, [0.18, 0.18, 0.18, 0.03, 0.14, 0.14], 0.0) * (1 + 0.2 * worn)
    height = 0.0165 + arc + 0.00005 * worn
    return _surface(pose, edge, height, albedo * _tone(rng), gloss)


def washer(pose: Pose, rng: np.random.Generator, look: np.random.Generator) -> Surface:
    """A turned metal flange: bore, bolt holes, a groove, lathe marks with their twin glare, and tarnish."""
    metal, tarnish = (_dye(look, code, 0.4) for code in ("9c9fa3", "6f523a"))
    holes = int(look.integers(5, 8))
    groove_at = 0.0195 + look.uniform(-0.0006, 0.0006)
    x, y = pose.x, pose.y
    radius, turn = np.hypot(x, y), np.arctan2(y, x)
    spacing = 2 * np.pi / holes
    nearest = (turn + spacing / 2) % spacing - spacing / 2
    bolt = np.hypot(radius * np.cos(nearest) - 0.0262, radius * np.sin(nearest))
    rims = np.maximum(radius - 0.0335, 0.0105 - radius)
    edge = np.maximum(rims, 0.0025 - bolt)
    sink = 0.0017 * smoothstep(0.0046, 0.0027, bolt)
    groove = smoothstep(0.0015, 0.0008, np.abs(radius - groove_at))
    lip = smoothstep(0.0006, -0.0006, radius - 0.0145)
    lathe = noise(rng, radius, np.zeros_like(radius), scale=0.0009, octaves=2)
    patches = noise(rng, x, y, scale=0.011, octaves=3, gain=0.6)
    height = 0.0085 + 0.0014 * lip - 0.0011 * groove - sink - _rounding(rims, 0.0012)
    height += 0.00005 * lathe + 0.0004 * noise(rng, x, y, scale=0.05)
    scratches = smoothstep(0.05, 0.0, np.abs(noise(rng, x, 2.5 * y, scale=0.02))) * smoothstep(0.2, 1.2, patches)
    glare_at = rng.normal(0.8, 0.15) + pose.angle  # fixed to the lamp, while the coordinates turn with the part
    glare = np.abs(np.cos(turn + glare_at)) ** 6
    stained = smoothstep(0.2, 2.2, patches + rng.normal(0, 0.25)) * 0.6
    shade = 1 + 0.05 * lathe + 0.30 * glare - 0.35 * groove - 0.25 * scratches
    albedo = mix(metal, tarnish, stained) * shade[..., None] * _tone(rng)
    return _surface(pose, edge, height, albedo, (0.18 + 0.30 * glare) * (1 - 0.7 * stained) * (1 + 0.12 * lathe))


def foam(pose: Pose, rng: np.random.Generator, look: np.random.Generator) -> Surface:
    """A block of egg-crate foam with open pores; the waves are cut at another phase each time."""
    colour = _dye(look, "4d8fb3")
    wave = 2 * np.pi / (0.0150 * look.uniform(0.9, 1.1))
    x, y = pose.x, pose.y
    sway = 0.0006 * noise(rng, x, y, scale=0.02)
    edge = _rounded_box(x + sway, y - sway, 0.038, 0.030, 0.003) + 0.0002 * noise(rng, x, y, scale=0.003)
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves = np.sin(wave * x + phase[0] + 900 * sway) * np.sin(wave * y + phase[1])
    cells = noise(rng, x, y, scale=0.0016)
    pores = smoothstep(1.1, 2.1, cells)
    height = 0.0155 + 0.0012 * waves - 0.0007 * pores - _rounding(edge, 0.0035)
    height += 0.0005 * noise(rng, x, y, scale=0.03)
    faded = noise(rng, x, y, scale=0.015, octaves=2)
    albedo = colour * (1 + 0.05 * faded + 0.05 * cells - 0.4 * pores + 0.05 * waves)[..., None] * _tone(rng)
    return _surface(pose, edge, height, albedo, np.full_like(x, 0.01))


def rope(pose: Pose, rng: np.random.Generator, look: np.random.Generator) -> Surface:
    """A three-strand rope: a slight bend, another phase of the twist each time, whipped ends, a coloured strand."""
    hemp, tracer, tape = (_dye(look, code) for code in ("c9b284", "3d6aa5", "8c2f2a"))
    pitch = 0.034 * look.uniform(0.9, 1.15)
    bend = rng.normal(0, 0.0016) * np.cos(pose.x * (np.pi / 0.11))
    bend = bend + rng.normal(0, 0.0006) * np.sin(pose.x * (np.pi / 0.05))
    x, y = pose.x, pose.y - bend
    core = 0.0103 * (1 + 0.02 * noise(rng, x, np.zeros_like(x), scale=0.015))
    around = np.arcsin(np.clip(y / core, -1, 1))
    twist = 3 * (around + 2 * np.pi * x / pitch + rng.uniform(0, 2 * np.pi) + 0.05 * noise(rng, x, y, scale=0.02))
    strand = np.abs(np.cos(twist / 2))
    whipped = smoothstep(0.0425, 0.0430, np.abs(x))
    bound = 0.5 + 0.5 * np.cos(x * (2 * np.pi / 0.0016))
    relief = 0.0022 * strand * (1 - whipped) + (0.0016 + 0.0003 * bound) * whipped
    reach = core + relief - 0.001
    edge = np.maximum(np.abs(y) - reach, np.abs(x) - 0.049)
    along, across = np.cos(0.5), np.sin(0.5)
    fibres = noise(rng, (x * along - y * across) / 5, x * across + y * along, scale=0.0011, octaves=2)
    height = 0.0112 + np.sqrt(np.clip(reach**2 - y**2, 0, None)) + 0.00012 * fibres
    height -= _rounding(np.abs(x) - 0.049, 0.002)
    dyed = smoothstep(0.75, 0.95, np.cos((twist - np.pi) / 3 - 0.6)) * smoothstep(0.35, 0.6, strand)
    worn = noise(rng, x, y, scale=0.009, octaves=2)
    albedo = mix(hemp, tracer, 0.85 * dyed) * (0.55 + 0.45 * strand + 0.10 * fibres + 0.05 * worn)[..., None]
    albedo = mix(albedo * _tone(rng), tape * (0.75 + 0.25 * bound)[..., None], whipped)
    return _surface(pose, edge, height, albedo, 0.02 + 0.06 * whipped)


PARTS: dict[str, Part] = {
    "cookie": Part(cookie, np.pi, (0.036, 0.036)),
    "tile": Part(tile, np.radians(15), (0.034, 0.034)),
    "peach": Part(peach, np.pi, (0.035, 0.035)),
    "gland": Part(gland, np.radians(15), (0.045, 0.016)),
    "washer": Part(washer, np.pi, (0.034, 0.034)),
    "foam": Part(foam, np.radians(15), (0.040, 0.032)),
    "rope": Part(rope, np.radians(15), (0.049, 0.017)),
}


def _surface(pose: Pose, edge: Image, height: Image, albedo: Image, gloss: Image) -> Surface:
    cover = np.clip(0.5 - edge / pose.pixel, 0, 1)
    return Surface(
        (height * pose.scale).astype(np.float32),
        np.clip(albedo, 0.002, 1).astype(np.float32),
        np.clip(gloss, 0, 1).astype(np.float32),
        cover.astype(np.float32),
    )


def _dye(look: np.random.Generator, code: str, strength: float = 1.0) -> Image:
    """A product's nominal colour: the prototype's, shifted mildly."""
    return np.clip(linear(code) * np.exp(look.normal(0, 0.10 * strength, 3)), 0, 0.95).astype(np.float32)


def _tone(rng: np.random.Generator) -> Image:
    """A batch's deviation in brightness and hue."""
    return np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.025, 3)).astype(np.float32)


def _wobble(rng: np.random.Generator, turn: Image, amount: float) -> Image:
    """A slightly irregular outline: five low harmonics, about `amount` deviation in all."""
    waves = [rng.normal(0, amount / 2) * np.cos(order * turn + rng.uniform(0, 2 * np.pi)) for order in range(2, 7)]
    return np.sum(waves, axis=0)


def _rounding(edge: Image, radius: float) -> Image:
    """How far a quarter-round edge lies below the flat top; `edge` is the signed distance, negative inside."""
    outward = np.clip(1 + edge / radius, 0, 1)
    return radius * (1 - np.sqrt(1 - outward**2))


def _rounded_box(x: Image, y: Image, half_x: float, half_y: float, corner: float) -> Image:
    """Signed distance to a rectangle with rounded corners."""
    over_x, over_y = np.abs(x) - (half_x - corner), np.abs(y) - (half_y - corner)
    outside = np.hypot(np.maximum(over_x, 0), np.maximum(over_y, 0))
    return outside + np.minimum(np.maximum(over_x, over_y), 0) - corner


def _scatter(
    rng: np.random.Generator, x: Image, y: Image, *, count: int, reach: float, radii: tuple[float, float]
) -> Image:
    """A field that is positive on `count` irregular blobs, 1 at their centres, spread over a disc without overlap."""
    field = np.full(x.shape, -1.0, dtype=np.float32)
    wobble = 0.35 * noise(rng, x, y, scale=0.002)
    centres: list[tuple[float, float]] = []
    for _ in range(30 * count):
        far, turn = reach * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        centre = (far * np.cos(turn), far * np.sin(turn))
        if all(np.hypot(centre[0] - a, centre[1] - b) > 2.2 * radii[1] for a, b in centres):
            centres.append(centre)
            stretch = rng.uniform(0.8, 1.25)
            distance = ((x - centre[0]) * stretch) ** 2 + ((y - centre[1]) / stretch) ** 2
            np.maximum(field, 1 + wobble * 0.5 - distance / rng.uniform(*radii) ** 2, out=field)
        if len(centres) == count:
            break
    return field


def _hexagon_top(y: Image, apothem: float, roll: float) -> Image:
    """Height of the upper outline of a hexagon over its centre, negative beside it."""
    top = np.full(y.shape, np.inf)
    for face in range(6):
        angle = roll + face * np.pi / 3
        if np.cos(angle) > 1e-3:
            top = np.minimum(top, (apothem - y * np.sin(angle)) / np.cos(angle))
    return top
