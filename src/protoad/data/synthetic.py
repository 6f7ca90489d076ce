"""A procedural scene generator: parts with natural variation, defects with exact masks, nothing to download.

It writes the MVTec 3D-AD folder layout, so the same reader serves synthetic and real data.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protoad.data.files import write_mask, write_rgb, write_xyz
from protoad.data.sample import Sample
from protoad.data.synthetic_defects import DEFECTS, draw_defect
from protoad.data.synthetic_parts import PARTS
from protoad.data.synthetic_scene import (
    DEPTH_NOISE,
    DISTANCE,
    FOCAL,
    RGB_NOISE,
    Image,
    Light,
    Picture,
    Rig,
    Surface,
    crop,
    draw_light,
    find_window,
    image_surface,
    place_on_table,
    pose_frame,
    rig,
)
from protoad.errors import DataError

__all__ = ["DEFECT_TYPES", "PART_TYPES", "render_part", "write_dataset"]

PART_TYPES: tuple[str, ...] = tuple(PARTS)
"""Names of the synthetic parts."""

DEFECT_TYPES: tuple[str, ...] = tuple(DEFECTS)
"""Names of the kinds of defects that they can have."""

_MIN_SIZE = 64  # smaller, the finest defects are narrower than a pixel
_VISIBLE_GREY = 12.0  # of 255, in the channel that changes most
_VISIBLE_HEIGHT = 4e-4  # metres: four deviations of the depth noise
_MIN_AREA = 60 / 256**2  # of the image
_MAX_SHARE = 0.4  # of the part
_ATTEMPTS = 40


def render_part(part: str, *, seed: int, defect: str | None = None, size: int = 256, product: int = 0) -> Sample:
    """One part on a table as a colour and depth camera sees it, with an exact mask of its defect.

    The defective part and its good twin (same seed, no defect) are equal outside the mask, bit for bit. The mask
    holds the pixels of the part where, before sensor noise, the defect changes a colour channel by more than 12
    of 255 or the height by more than 0.4 mm.

    Args:
        part: one of `PART_TYPES`.
        seed: decides pose, shape, texture, light, sensor noise and the defect; 0 or more.
        defect: one of `DEFECT_TYPES`, or None for a good part.
        size: side of the square image in pixels, 64 or more. The field of view stays.
        product: decides nominal colours, texture scale and the like, shared by all parts of one dataset; 0 or more.

    Returns:
        rgb (y x 3) uint8; xyz (y x 3) float32 in metres in camera axes, NaN at steep edges and random specks;
        mask (y x) bool; named "cookie/bump/7" after part, defect and seed.

    Raises:
        DataError: if part, defect, seed, size or product is not one of those.

    Examples:
        >>> sample = render_part("cookie", seed=3, defect="hole", size=96)
        >>> sample.rgb.shape, sample.label, bool(sample.mask.any())
        ((96, 96, 3), 1, True)
    """
    _check_choice("part", part, PART_TYPES)
    if defect is not None:
        _check_choice("defect", defect, DEFECT_TYPES)
    _check_count(seed=(seed, 0), product=(product, 0), size=(size, _MIN_SIZE))
    camera = rig(size)
    pose_rng, shape_rng, table_rng, light_rng, sensor_rng = _streams(5, seed, part)
    look = _streams(1, product, part, "look")[0]
    pose = pose_frame(camera, pose_rng, max_angle=PARTS[part].max_angle)
    window = find_window(pose, *PARTS[part].half_size)
    surface = place_on_table(PARTS[part].draw(crop(pose, window), shape_rng, look), window, camera, table_rng)
    light, mask = draw_light(light_rng), np.zeros((size, size), dtype=bool)
    picture = image_surface(surface, camera, light)
    if defect is not None:
        # the defect alters nothing outside the window: drawing it there saves half of the time
        near, defect_rng = crop(camera, window), _streams(1, seed, part, defect)[0]
        damaged, mask[window] = _damage(defect, crop(surface, window), near, light, defect_rng)
        for field, changed in zip(picture, damaged, strict=True):
            field[mask] = changed[mask[window]]
    rgb, xyz = _sense(picture, sensor_rng)
    kind = defect or "good"
    return Sample(rgb, xyz, mask, int(defect is not None), kind, f"{part}/{kind}/{seed}")


def write_dataset(
    root: str | os.PathLike[str],
    *,
    parts: Sequence[str] = PART_TYPES,
    train: int = 10,
    validation: int = 4,
    test_good: int = 12,
    test_per_defect: int = 4,
    seed: int = 0,
    size: int = 256,
) -> None:
    """Writes a dataset in MVTec 3D-AD layout: root/part/{train,validation,test}/kind/{rgb,xyz,gt}/000.png or .tiff.

    Every sample has its own random stream: the same seed gives the same bytes, larger counts only add samples, and
    train, validation and test share nothing but the product. Masks are written for test parts, good ones too.

    Args:
        root: folder to write to; made if missing.
        parts: some of `PART_TYPES`.
        train: good parts to train on, per kind of part.
        validation: good parts to calibrate on.
        test_good: good parts to test on.
        test_per_defect: defective parts to test on, for each of `DEFECT_TYPES`.
        seed: decides the product and all samples; 0 or more.
        size: side of the square images in pixels.

    Raises:
        DataError: if an argument is out of range, or root/part exists and isn't empty (old and new parts would mix).
    """
    for part in parts:
        _check_choice("part", part, PART_TYPES)
    counts = {"train": train, "validation": validation, "test_good": test_good, "test_per_defect": test_per_defect}
    _check_count(seed=(seed, 0), size=(size, _MIN_SIZE), **{name: (count, 0) for name, count in counts.items()})
    for part in parts:
        folder = Path(root) / part
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder}: exists and isn't empty, expected a free place; delete it or write elsewhere")
    plan: list[tuple[str, str | None, int]] = [
        ("train", None, train),
        ("validation", None, validation),
        ("test", None, test_good),
    ]
    plan += [("test", defect, test_per_defect) for defect in DEFECT_TYPES]
    for part in parts:
        for split, defect, count in plan:
            folder = Path(root) / part / split / (defect or "good")
            for index in range(count):
                own = int(_sequence(seed, part, f"{split}/{defect or 'good'}", index).generate_state(1, np.uint64)[0])
                _write(folder, index, render_part(part, seed=own, defect=defect, size=size, product=seed))


def _write(folder: Path, index: int, sample: Sample) -> None:
    write_rgb(folder / "rgb" / f"{index:03d}.png", sample.rgb)
    write_xyz(folder / "xyz" / f"{index:03d}.tiff", sample.xyz)
    if folder.parent.name == "test":
        write_mask(folder / "gt" / f"{index:03d}.png", sample.mask)


def _damage(
    defect: str, good: Surface, camera: Rig, light: Light, rng: np.random.Generator
) -> tuple[Picture, np.ndarray]:
    """Draws defects until one is neither too small to see nor too large: its picture, and its mask (y x) bool."""
    before, part = image_surface(good, camera, light), good.cover > 0.5
    frame = (DISTANCE / (FOCAL * camera.pixel)) ** 2  # pixels of the whole image
    smallest, largest = _MIN_AREA * frame, _MAX_SHARE * part.sum()
    growth = 1.0
    for _ in range(_ATTEMPTS):
        surface = draw_defect(defect, good, camera, rng, growth=growth)
        picture = image_surface(surface, camera, light)
        mask = _visible(picture, before, surface.height - good.height, smallest / 6) & part
        area = mask.sum()
        if smallest <= area <= largest:
            return picture, mask
        growth *= 1.5 if area < smallest else 0.6
    raise RuntimeError(f"no visible {defect} found in {_ATTEMPTS} draws")


def _visible(picture: Picture, good: Picture, raised: Image, smallest: float) -> np.ndarray:
    """Where colour or height differ by more than the threshold, without pinholes and specks."""
    from scipy.ndimage import binary_fill_holes, label

    changed = np.abs(picture.rgb - good.rgb).max(axis=-1) > _VISIBLE_GREY
    changed |= np.abs(raised) > _VISIBLE_HEIGHT
    pieces, _ = label(changed, structure=np.ones((3, 3)))
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    return np.asarray(binary_fill_holes((areas >= smallest)[pieces]))


def _sense(picture: Picture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Adds sensor noise and drops depth at steep edges and on random specks; every pixel has its own draws."""
    from scipy.ndimage import maximum_filter

    shape = picture.steep.shape
    rgb = picture.rgb + RGB_NOISE * rng.standard_normal((*shape, 3), dtype=np.float32)
    depth = picture.xyz[..., 2:]
    error = DEPTH_NOISE * rng.standard_normal((*shape, 1), dtype=np.float32)
    xyz = (picture.xyz * (1 + error / depth)).astype(np.float32)
    specks = maximum_filter(rng.random(shape, dtype=np.float32) < 0.0008, size=2)
    xyz[specks | (rng.random(shape, dtype=np.float32) < 0.9 * picture.steep)] = np.nan
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8), xyz


def _sequence(seed: int, *keys: str | int) -> np.random.SeedSequence:
    """An independent random stream for every combination of a seed and names or numbers."""
    return np.random.SeedSequence([seed, *(zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys)])


def _streams(count: int, seed: int, *keys: str) -> list[np.random.Generator]:
    return [np.random.default_rng(child) for child in _sequence(seed, *keys).spawn(count)]


def _check_choice(what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise DataError(f"{what}: {found!r} is unknown, expected one of {', '.join(known)}")


def _check_count(**limits: tuple[int, int]) -> None:
    for what, (found, lowest) in limits.items():
        if isinstance(found, bool) or not isinstance(found, (int, np.integer)) or found < lowest:
            raise DataError(f"{what}: expected a whole number, {lowest} or more, got {found!r}")
