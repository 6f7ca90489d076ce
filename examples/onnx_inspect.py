"""Inspects a part with an exported detector, without torch and without protoad: numpy, opencv-python, onnxruntime.

    pirn export --checkpoint runs/NAME --out NAME.onnx
    python examples/onnx_inspect.py NAME.onnx --rgb part.png --xyz part.tiff --out overlay.png

Prints the score, the p-value and the decision, and draws the heatmap on the frame. Copy it and make it yours: what is
here is all that the ONNX file leaves to do, which is reading the files, finding the part on its table (the larger half:
as `protoad.data.find_foreground`, which says why each step is there), and reading the calibration.
"""

from __future__ import annotations

import argparse
import json
import sys
from fractions import Fraction

import cv2
import numpy as np
import onnxruntime


def main() -> int:
    """Inspects one part; gives 0, or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="file that pirn export wrote")
    parser.add_argument("--rgb", required=True, metavar="FILE", help="8-bit colour image")
    parser.add_argument("--xyz", required=True, metavar="FILE", help="organised point cloud, float32 TIFF of that size")
    parser.add_argument("--out", default=None, metavar="PNG", help="write the heatmap on the frame")
    arguments = parser.parse_args()
    try:
        rgb, xyz = read_rgb(arguments.rgb), read_xyz(arguments.xyz)
        session, details = load(arguments.model)
        found = inspect(session, details, rgb, xyz)
    except (OSError, ValueError) as error:
        print(f"onnx_inspect: {error}", file=sys.stderr)
        return 2
    print(f"score {found['score']:.6f}, {in_words(details, found['score'], found.get('depth_lost', 0))}")
    if arguments.out is not None:
        cv2.imwrite(arguments.out, overlay(rgb, found["map_fused"], details["heatmap_range"]["fused"])[..., ::-1])
    return 0


def load(path: str) -> tuple[onnxruntime.InferenceSession, dict]:
    """The model, and what it says of itself."""
    with open(path, "rb") as file:
        session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    if said.get("inputs") != "frames":
        raise ValueError(f"{path}: expected a model that takes frames; export it without --prepared")
    names = ("unit", "plane_distance", "calibrations", "heatmap_range")
    return session, {name: json.loads(said[name]) for name in names}


def read_rgb(path: str) -> np.ndarray:
    """(y x 3) uint8; OpenCV keeps blue first."""
    image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"{path}: expected an 8-bit colour image")
    return np.ascontiguousarray(image[..., 2::-1])


def read_xyz(path: str) -> np.ndarray:
    """(y x 3) float32; OpenCV turns the channels of a TIFF around as well."""
    points = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if points is None or points.ndim != 3 or points.shape[2] != 3 or points.dtype != np.float32:
        raise ValueError(f"{path}: expected a TIFF file with three float32 channels, x, y, z")
    return np.ascontiguousarray(points[..., ::-1])


def inspect(session: onnxruntime.InferenceSession, details: dict, rgb: np.ndarray, xyz: np.ndarray) -> dict:
    """Score and heatmaps of one part, by the names of the model's outputs."""
    if rgb.shape != xyz.shape:
        raise ValueError(f"expected image and point cloud of one size, got {rgb.shape[:2]} and {xyz.shape[:2]}")
    points = xyz * np.float32(details["unit"])
    given = {"rgb": rgb, "xyz": points}
    if details["plane_distance"] is not None:
        given["foreground"] = find_foreground(points, details["plane_distance"])
    needed = {one.name: given[one.name][None] for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    return {name: values[0] for name, values in zip(names, session.run(names, needed), strict=True)}


def in_words(details: dict, score: float, lost: float) -> str:
    """The p-value among good parts, held out, that lacked as much of their depth, and what follows from it."""
    steps = [float(step) for step in details["calibrations"]]
    if not steps:
        return "not calibrated: run pirn calibrate before pirn export"
    enough = [step for step in steps if step >= lost]
    if not enough or details["calibrations"][str(min(enough))]["method"] != "split":
        return f"no decision: not calibrated for {lost:.0%} of the depth lost"
    calibration = details["calibrations"][str(min(enough))]
    as_high = sum(other >= score for other in calibration["scores"])
    p_value = Fraction(1 + as_high, 1 + len(calibration["scores"]))
    reject = p_value <= Fraction(repr(calibration["false_reject_rate"]))
    note = f" ({lost:.0%} of the part without depth)" if lost else ""
    return f"p-value {float(p_value):.3g}, {'REJECT' if reject else 'accept'}{note}"


def overlay(rgb: np.ndarray, heatmap: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """The frame in grey, and on it the heatmap on the one scale of this detector, (y x 3) uint8."""
    height, width = rgb.shape[:2]
    side = max(height, width)
    square = cv2.resize(heatmap, (side, side), interpolation=cv2.INTER_LINEAR)
    top, left = (side - height) // 2, (side - width) // 2
    level = (square[top : top + height, left : left + width] - limits[0]) / (limits[1] - limits[0])
    colours = cv2.applyColorMap(np.rint(255 * level.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = (rgb @ np.array([0.299, 0.587, 0.114]))[..., None]
    return np.rint(0.5 * grey + 0.5 * colours[..., ::-1]).astype(np.uint8)


# From here on: the part on its table.

STEP = np.ones((3, 3), np.uint8)


def find_foreground(xyz: np.ndarray, distance: float) -> np.ndarray:
    """(y x) bool, where the part is: what stands farther than `distance` metres off the plane of the frame's border."""
    valid = (np.abs(xyz) < 1e12).all(axis=-1) & (xyz != 0).any(axis=-1)
    points = np.where(valid[..., None], xyz, 0).astype(np.float64)
    plane = border_plane(points, valid, distance)
    if plane is None:
        return valid
    height = np.where(valid, dot(points, plane[0]) - plane[1], 0)
    off = without_specks(np.abs(height) > distance)
    part = without_scenery(off, points, height, valid, distance)
    if off.sum() <= 0.002 * valid.sum() or not part.any():
        return valid
    return part | enclosed(part)


def border_plane(points: np.ndarray, valid: np.ndarray, distance: float) -> tuple[np.ndarray, float] | None:
    """Normal towards the camera, and offset, of the plane that most of the frame's border lies on: RANSAC, then SVD."""
    points = points[border_of(valid)]
    if len(points) < 3:
        return None
    rng = np.random.default_rng(0)
    triples = points[rng.integers(len(points), size=(256, 3))]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    if not lengths.any():
        return None
    normals, corners = normals[lengths > 0] / lengths[lengths > 0, None], triples[lengths > 0, 0]
    voters = points[rng.permutation(len(points))[:2000]]
    best = (np.abs(dot(voters[:, None], normals) - (normals * corners).sum(axis=1)) < distance).sum(axis=0).argmax()
    normal, offset = normals[best], float(dot(normals[best], corners[best]))
    for _ in range(3):
        agree = np.abs(dot(points, normal) - offset) < distance
        if agree.mean() <= 0.5:
            return None
        centre = points[agree].mean(axis=0)
        normal = np.linalg.svd(points[agree] - centre, full_matrices=False)[2][2]
        offset = float(dot(normal, centre))
    return (normal, offset) if offset < 0 else (-normal, -offset)


def border_of(valid: np.ndarray) -> np.ndarray:
    """Valid pixels within ten of the frame, or more where these are few."""
    strip = 10
    while True:
        border = valid.copy()
        border[strip : -strip or None, strip : -strip or None] = False
        if border.sum() >= min(200, valid.sum()) or 2 * strip >= min(valid.shape):
            return border
        strip *= 2


def without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without groups of less than 0.02 % of the frame; pixels two apart are one group."""
    count, groups = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), STEP), connectivity=8)
    pixels = np.bincount(groups[mask], minlength=count)
    return mask & (pixels >= np.ceil(2e-4 * mask.size))[groups]


def without_scenery(
    off: np.ndarray, points: np.ndarray, height: np.ndarray, valid: np.ndarray, distance: float
) -> np.ndarray:
    """What stands off the table, without the floor behind it and a rim around."""
    if (height[off] > 0).sum() <= 0.002 * valid.sum():
        return np.zeros_like(off)
    sides = sides_of(valid)
    if not any(off[side].any() for side in sides):
        return off
    pieces, count = pieces_of(off, points, distance)
    labels = pieces[off]
    met = sum(np.isin(np.arange(count), pieces[side]).astype(int) for side in sides)
    pixels = np.bincount(labels, minlength=count)
    before = np.bincount(labels, weights=height[off] > 0, minlength=count) > 0.01 * pixels
    floor, rim = ~before & (met > 0), before & (met >= 3)
    if pixels[before & ~rim].sum() < 0.1 * pixels[rim].sum():
        rim[:] = False
    part = off.copy()
    part[off] = ~(floor | rim)[labels]
    return part


def sides_of(valid: np.ndarray) -> list[tuple[slice, slice]]:
    """The four sides of what the sensor saw, two pixels wide."""
    y, x = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
    top, bottom, left, right = y[0], y[-1] + 1, x[0], x[-1] + 1
    rows, columns = slice(top, bottom), slice(left, right)
    return [
        (slice(top, top + 2), columns),
        (slice(max(bottom - 2, top), bottom), columns),
        (rows, slice(left, left + 2)),
        (rows, slice(max(right - 2, left), right)),
    ]


def pieces_of(mask: np.ndarray, points: np.ndarray, distance: float) -> tuple[np.ndarray, int]:
    """Numbers the pieces of a mask (-1 outside): pixels that are two apart at most, and close in space as well."""
    names = np.where(mask, np.arange(mask.size).reshape(mask.shape), -1)
    links = [np.empty((2, 0), dtype=int)]
    for here, there in pairs_of(*mask.shape):
        both = mask[here] & mask[there]
        if both.any():
            step = points[here][both] - points[there][both]
            length = np.sqrt(dot(step, step))
            near = length <= distance + 2 * np.median(length)
            links.append(np.stack([names[here][both][near], names[there][both][near]]))
    first, second = np.concatenate(links, axis=1)
    root = np.arange(mask.size)
    while (root[first] != root[second]).any():  # each takes the lowest name that it can see, then that one's own
        lowest = np.minimum(root[first], root[second])
        np.minimum.at(root, root[first], lowest)
        np.minimum.at(root, root[second], lowest)
        root = root[root]
    _, numbers = np.unique(root[names[mask]], return_inverse=True)
    names[mask] = numbers.reshape(-1)
    return names, int(numbers.max()) + 1


def pairs_of(height: int, width: int) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Slices that lay each pixel over one of its neighbours, for half of those within two pixels."""
    steps = [
        (dy, dx) for dy in range(3) for dx in range(-2, 3) if (dy, dx) > (0, 0) and dy < height and abs(dx) < width
    ]
    return [
        (
            (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))),
            (slice(dy, height), slice(max(0, dx), width - max(0, -dx))),
        )
        for dy, dx in steps
    ]


def enclosed(part: np.ndarray) -> np.ndarray:
    """What the part surrounds, but for a rim of two pixels."""
    wall = np.pad(cv2.dilate(part.astype(np.uint8), STEP), 1)
    cv2.floodFill(wall, None, (0, 0), 2)  # from outside
    filled = (wall != 2)[1:-1, 1:-1].astype(np.uint8)
    return cv2.erode(filled, STEP, borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the last axis; elementwise, since threaded matrix products round differently by machine."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


if __name__ == "__main__":
    sys.exit(main())
