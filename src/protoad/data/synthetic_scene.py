"""How the procedural scenes are imaged: camera above a table, random fields, shading, sensor."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DEPTH_NOISE",
    "RGB_NOISE",
    "Image",
    "Light",
    "Picture",
    "Pose",
    "Rig",
    "Surface",
    "Window",
    "crop",
    "draw_light",
    "find_window",
    "image_surface",
    "linear",
    "mix",
    "noise",
    "place_on_table",
    "pose_frame",
    "rig",
    "smoothstep",
]

Image = NDArray[Any]
Window = tuple[slice, slice]
Fields = TypeVar("Fields", bound=tuple[Any, ...])

DISTANCE = 0.50  # metres from the camera to the table along the optical axis
FOCAL = 4.0  # focal length over image side: the frame shows 12.5 cm of the table
TABLE_NORMAL = (0.035, -0.105, -1.0)  # slightly tilted, as no real camera stands exactly upright
DEPTH_NOISE = 1e-4  # metres, one standard deviation
RGB_NOISE = 1.6  # grey levels of 255, one standard deviation


class Rig(NamedTuple):
    """The fixed camera and table, per image size: rays (y x 3) with z = 1, their component against the table normal
    (y x), table coordinates u, v (y x) in metres, and the width of a pixel on the table in metres.
    """

    rays: Image
    facing: Image
    u: Image
    v: Image
    pixel: float


class Pose(NamedTuple):
    """The part's own coordinates x, y (y x) in metres, its scale, a pixel's width in them, and its turn in rad."""

    x: Image
    y: Image
    scale: float
    pixel: float
    angle: float


class Surface(NamedTuple):
    """What the camera sees: height over the table (y x) in metres, linear colour (y x 3), gloss (y x), cover (y x) in
    [0, 1], the share of a pixel that the part fills.
    """

    height: Image
    albedo: Image
    gloss: Image
    cover: Image


class Light(NamedTuple):
    """Unit direction to the lamp in camera axes (3,), its colour (3,), and the ambient share."""

    direction: Image
    colour: Image
    ambient: float


class Picture(NamedTuple):
    """A noise-free exposure: rgb (y x 3) in [0, 255], xyz (y x 3) in metres, and steep (y x), 1 where depth fails."""

    rgb: Image
    xyz: Image
    steep: Image


@lru_cache(maxsize=4)
def rig(size: int) -> Rig:
    """The rays and the table coordinates of a size x size camera."""
    axis = (np.arange(size, dtype=np.float64) + 0.5 - size / 2) / (FOCAL * size)
    rays = np.stack([*np.meshgrid(axis, axis), np.ones((size, size))], axis=-1)
    normal = np.asarray(TABLE_NORMAL) / np.linalg.norm(TABLE_NORMAL)
    along_u = np.cross([0.0, 1.0, 0.0], -normal)
    along_u /= np.linalg.norm(along_u)
    along_v = np.cross(-normal, along_u)
    facing = rays @ normal
    points = rays * (DISTANCE * normal[2] / facing)[..., None] - np.array([0.0, 0.0, DISTANCE])
    camera = Rig(
        rays.astype(np.float32),
        facing.astype(np.float32),
        (points @ along_u).astype(np.float32),
        (points @ along_v).astype(np.float32),
        DISTANCE / (FOCAL * size),
    )
    for field in camera[:4]:
        field.setflags(write=False)  # every later call gets the same arrays
    return camera


def pose_frame(camera: Rig, rng: np.random.Generator, *, max_angle: float) -> Pose:
    """A random placement: turn up to `max_angle` rad, 4 mm of shift, 5 % of scale."""
    angle = float(rng.uniform(-max_angle, max_angle))
    shift_u, shift_v = rng.uniform(-0.004, 0.004, 2)
    scale = float(rng.uniform(0.95, 1.05))
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (camera.u - np.float32(shift_u)) / scale, (camera.v - np.float32(shift_v)) / scale
    x, y = cos * u + sin * v, cos * v - sin * u
    return Pose(x.astype(np.float32), y.astype(np.float32), scale, camera.pixel / scale, angle)


def find_window(pose: Pose, half_x: float, half_y: float) -> Window:
    """The rows and columns around a part of that half size, in metres, with 6 mm of table around it: so much that all
    that shades the part lies inside.
    """
    near = (np.abs(pose.x) < half_x + 0.006) & (np.abs(pose.y) < half_y + 0.006)
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def crop(fields: Fields, window: Window) -> Fields:
    """The same named tuple with every image cut to the window."""
    kept = (field[window] if isinstance(field, np.ndarray) else field for field in fields)
    return type(fields)(*kept)


def noise(rng: np.random.Generator, x: Image, y: Image, *, scale: float, octaves: int = 1, gain: float = 0.5) -> Image:
    """A smooth random field with zero mean and unit variance: a cubic B-spline over a random lattice.

    Bound to metres and not to pixels, so a scene looks the same at every image size.

    Args:
        rng: source of the lattice.
        x: coordinate (y x) in metres.
        y: coordinate (y x) in metres.
        scale: spacing of the lattice in metres; each further octave halves it.
        octaves: number of lattices summed.
        gain: amplitude of an octave against the one before.
    """
    from scipy.ndimage import map_coordinates

    total = np.zeros(x.shape, dtype=np.float32)
    power = 0.0
    for octave in range(octaves):
        lattice = rng.standard_normal((48, 48)).astype(np.float32)
        offset = rng.uniform(0, 48, 2)
        step = scale / 2**octave
        at = np.stack([y / step + offset[0], x / step + offset[1]])
        field = map_coordinates(lattice, at, order=3, mode="grid-wrap", prefilter=False, output=np.float32)
        total += np.float32(gain**octave) * field
        power += (gain**octave * 151 / 315) ** 2  # 151/315: mean square of the cubic B-spline's weights, per axis
    return total / np.float32(np.sqrt(power))


def smoothstep(low: float, high: float, value: Image) -> Image:
    """0 below `low`, 1 above `high`, smooth between (`low` > `high` turns it round)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Image, second: Image, share: Image | float) -> Image:
    """Blends two colours: `first` where share is 0, `second` where it is 1; share (y x) or a number."""
    weight = np.asarray(share, dtype=np.float32)[..., None]
    return first + (second - first) * weight


def linear(code: str) -> Image:
    """A colour written as "rrggbb" as three linear intensities (gamma 2 stands for the sRGB curve)."""
    return (np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], dtype=np.float32) / 255) ** 2


def draw_light(rng: np.random.Generator) -> Light:
    """A lamp at the upper left, with slight variation of place, power and tint."""
    azimuth, elevation = np.radians(rng.normal(225, 7)), np.radians(rng.normal(48, 3))
    direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), -np.sin(elevation)])
    tint = rng.normal(0, 0.015)
    colour = float(np.clip(rng.normal(1, 0.04), 0.88, 1.12)) * np.array([1 + tint, 1, 1 - tint])
    return Light(direction.astype(np.float32), colour.astype(np.float32), float(rng.uniform(0.30, 0.36)))


def place_on_table(part: Surface, window: Window, camera: Rig, rng: np.random.Generator) -> Surface:
    """The whole frame: the part, drawn within the window, on a mat with a faint weave."""
    cloth = 0.06 * noise(rng, camera.u, camera.v, scale=0.012, octaves=2)
    weave = 0.05 * np.sin(camera.u * (2 * np.pi / 0.0023)) * np.sin(camera.v * (2 * np.pi / 0.0023))
    albedo = (linear("5b6670") * (1 + cloth + weave)[..., None]).astype(np.float32)
    height, gloss, cover = np.zeros((3, *cloth.shape), dtype=np.float32)
    solid = part.cover > 0.5
    albedo[window] = mix(albedo[window], part.albedo, part.cover)
    height[window] = np.where(solid, np.maximum(part.height, 0), 0)
    gloss[window] = np.where(solid, part.gloss, 0)
    cover[window] = part.cover
    return Surface(height, albedo, gloss, cover)


def image_surface(surface: Surface, camera: Rig, light: Light) -> Picture:
    """Exposes a surface without sensor noise: Lambert, a mild highlight, darkening in hollows and behind edges.

    A pixel's point lies on its own ray, at the height given for it: an organised cloud that is exact for this camera.
    """
    from scipy.ndimage import gaussian_filter

    normal_z = TABLE_NORMAL[2] / np.linalg.norm(TABLE_NORMAL)
    depth = (surface.height + np.float32(DISTANCE * normal_z)) / camera.facing
    xyz = camera.rays * depth[..., None]
    normals = _cross(np.gradient(xyz, axis=0), np.gradient(xyz, axis=1))
    normals /= np.sqrt((normals**2).sum(-1, keepdims=True)) + 1e-20

    hollow = gaussian_filter(surface.height, 0.0035 / camera.pixel, truncate=2.5, mode="nearest")
    shift = max(1, round(0.004 / camera.pixel))
    rows, columns = (np.maximum(np.arange(length) - shift, 0) for length in hollow.shape)
    behind = hollow[rows][:, columns]  # what stands between this place and the lamp at the upper left
    open_sky = 1 - 0.55 * np.clip((hollow - surface.height) / 0.007, 0, 1)
    lit = 1 - 0.6 * np.clip((behind - surface.height) / 0.012, 0, 1)

    halfway = light.direction + np.array([0, 0, -1], dtype=np.float32)
    halfway /= np.linalg.norm(halfway)
    diffuse = np.clip(normals @ light.direction, 0, 1) * lit
    highlight = surface.gloss * np.clip(normals @ halfway, 0, 1) ** 28 * lit
    ambient = light.ambient * (0.75 - 0.25 * normals[..., 2]) * open_sky
    radiance = surface.albedo * (ambient + 0.95 * diffuse * (0.6 + 0.4 * open_sky))[..., None] + highlight[..., None]
    radiance = gaussian_filter(radiance * light.colour, (0.55, 0.55, 0), truncate=3)
    rgb = 255 * np.sqrt(np.clip(radiance, 0, 1))
    toward = -(normals * camera.rays).sum(-1) / np.sqrt((camera.rays**2).sum(-1))
    return Picture(rgb, xyz, smoothstep(0.34, 0.12, toward))


def _cross(a: Image, b: Image) -> Image:
    """Cross product over the last axis, several times faster than np.cross on images."""
    return np.stack(
        [
            a[..., 1] * b[..., 2] - a[..., 2] * b[..., 1],
            a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2],
            a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0],
        ],
        axis=-1,
    )
