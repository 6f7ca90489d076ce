"""Data sets of a few pixels in each layout that protoad reads, oddities included."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from protoad.data import write_mask, write_xyz

__all__ = [
    "adam3d",
    "eyecandies",
    "frame",
    "mvtec3d",
    "own_files",
    "pcd",
    "ply",
    "real_iad_folders",
    "real_iad_lists",
    "tree_hash",
    "write_depth",
    "write_image",
]

SIZE = (12, 16)  # y x
FOCAL = 40.0  # pixels


def frame(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Colour (y x 3) uint8 and points (y x 3) float32 half a metre away, a tenth of them NaN."""
    rng = np.random.default_rng(seed)
    height, width = size
    z = 0.5 + 0.01 * rng.random(size)
    v, u = np.mgrid[:height, :width]
    xyz = np.stack([(u - (width - 1) / 2) / FOCAL * z, (v - (height - 1) / 2) / FOCAL * z, z], axis=-1)
    xyz[rng.random(size) < 0.1] = np.nan
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8), xyz.astype(np.float32)


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_depth(path: Path, depth: np.ndarray) -> None:
    write_image(path, depth.astype(np.uint16))


def outline(size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[3:5, 4:8] = True
    return mask


def mvtec3d(root: Path, category: str = "nut", *, masks: str = "gt", size: tuple[int, int] = SIZE) -> Path:
    """Three good parts to learn from, one to validate, one good and two defective ones to test."""
    plan = [("train/good", 3), ("validation/good", 1), ("test/good", 1), ("test/bump", 2)]
    for start, (place, count) in enumerate(plan):
        folder = root / category / place
        for index in range(count):
            rgb, xyz = frame(10 * start + index, size)
            write_image(folder / "rgb" / f"{index:03d}.png", rgb)
            write_xyz(folder / "xyz" / f"{index:03d}.tiff", xyz)
            if place.startswith("test"):
                write_mask(folder / masks / f"{index:03d}.png", outline(size) & (place == "test/bump"))
    return root


def adam3d(root: Path, category: str = "gripper_closed") -> Path:
    """As published for anomalib: ground_truth, under train/good too, and images with an alpha channel."""
    for start, (place, count) in enumerate([("train/good", 3), ("test/good", 1), ("test/burr", 1)]):
        folder = root / category / place
        for index in range(count):
            rgb, xyz = frame(10 * start + index)
            alpha = np.full((*SIZE, 1), 7, dtype=np.uint8)
            write_image(folder / "rgb" / f"scan.{index}.png", np.concatenate([rgb, alpha], axis=-1))
            write_xyz(folder / "xyz" / f"scan.{index}.tiff", xyz)
            write_mask(folder / "ground_truth" / f"scan.{index}.png", outline() & (place == "test/burr"))
    return root


def eyecandies(root: Path, category: str = "GummyBear", *, lights: tuple[int, ...] = (0, 4)) -> Path:
    """Train with three digits, test_public with two: a good part, two defective ones, and one whose mask is empty."""
    defects = {"00": [], "25": ["bumps"], "26": ["dents", "normals"], "27": []}
    plan = {"train": {n: [] for n in ("000", "001", "002")}, "val": {"00": []}, "test_public": defects}
    for start, (split, parts) in enumerate(plan.items()):
        folder = root / category / split / "data"
        for index, (number, kinds) in enumerate(parts.items()):
            rgb, _ = frame(10 * start + index)
            rng = np.random.default_rng(10 * start + index)
            for light in lights:
                write_image(folder / f"{number}_image_{light}.png", rgb // (light + 1))
            write_depth(folder / f"{number}_depth.png", rng.integers(0, 65536, SIZE))
            (folder / f"{number}_info_depth.yaml").write_text("normalization:\n  max: 4.5\n  min: 2.5\n")
            write_image(folder / f"{number}_normals.png", np.full((*SIZE, 3), (128, 128, 255), dtype=np.uint8))
            (folder / f"{number}_metadata.yaml").write_text(f"anomalous: {int(number >= '25' and split[0] == 't')}\n")
            for kind in ("bumps", "dents", "colors", "normals"):
                write_mask(folder / f"{number}_{kind}_mask.png", outline() & (kind in kinds))
            write_mask(folder / f"{number}_mask.png", outline() & bool(kinds))
    return root


def _real_iad_part(folder: Path, number: int, seed: int, *, good: bool, flat: bool = False) -> dict[str, Path]:
    """One part of Real-IAD D3: colour at twice the size of cloud and photometric stereo, z NaN where invalid."""
    rgb, xyz = frame(seed)
    colour = rgb.repeat(2, axis=0).repeat(2, axis=1)
    name = f"S{number:04d}"
    files = {
        "image_path": folder / "rgb" / (f"{name}.png" if flat else f"{name}/{name}_L05_RGB.jpg"),
        "xyz_path": folder / "xyz" / f"{name}.tiff",
        "ps_path": folder / "ps" / f"{name}.jpg",
    }
    write_image(files["image_path"], colour)
    if not flat:
        write_image(folder / "rgb" / name / f"{name}_L01_RGB.jpg", colour // 2)
        write_image(folder / "rgb" / name / f"{name}_L05_IR.jpg", colour // 2)
    files["xyz_path"].parent.mkdir(parents=True, exist_ok=True)
    xyz[..., :2] = np.nan_to_num(xyz[..., :2])
    tifffile.imwrite(files["xyz_path"], xyz, photometric="rgb")
    write_image(files["ps_path"], np.full((*SIZE, 3), (128, 128, 255), dtype=np.uint8))
    if not good:
        files["mask_path"] = folder / "gt" / ("" if flat else "rgb") / f"{name}.png"
        write_mask(files["mask_path"], outline().repeat(2, axis=0).repeat(2, axis=1))
    return files


def real_iad_folders(root: Path, category: str = "knob-cap", *, good: str = "GOOD", flat: bool = False) -> Path:
    """The layout that the authors' code reads, in either of its two variants."""
    for start, (place, count) in enumerate([(f"train/{good}", 3), (f"test/{good}", 1), ("test/AK", 2)]):
        for index in range(count):
            _real_iad_part(root / category / place, index, 10 * start + index, good=good in place, flat=flat)
    return root


def real_iad_lists(root: Path, category: str = "knob_cap") -> Path:
    """The layout of the download: a JSON list of each category, and the files unpacked beside it."""
    raw = root / "realiad_d3_raw" / category
    lists: dict[str, list] = {"train": [], "validation": [], "test": []}
    for start, (split, kind, count) in enumerate(
        [("train", "OK", 3), ("validation", "OK", 1), ("test", "OK", 1), ("test", "HS", 2)]
    ):
        for index in range(count):
            files = _real_iad_part(raw / kind, 10 * start + index, 10 * start + index, good=kind == "OK")
            entry = {name: path.relative_to(raw).as_posix() for name, path in files.items()}
            lists[split].append({"anomaly_class": kind, "mask_path": None, **entry})
    (root / "realiad_d3_jsons").mkdir(parents=True, exist_ok=True)
    (root / "realiad_d3_jsons" / f"{category}.json").write_text(
        json.dumps({"meta": {"prefix": f"{category}/"}, **lists})
    )
    return root


OWN = """\
unit = "mm"
camera = "camera.json"

[train]
rgb = "good/*_color.png"
depth = "good/*_depth.png"

[test.good]
rgb = "Test Teile/gut/*_color.png"
depth = "Test Teile/gut/*_depth.png"

[test.scratch]
rgb = "Test Teile/kratzer/*_color.png"
depth = "Test Teile/kratzer/*_depth.png"
mask = "Test Teile/kratzer/*_mask.png"
"""


def own_files(root: Path) -> Path:
    """A user's own files: depth in millimetres at half the size of the colour, names with spaces, dots and umlauts."""
    for start, (place, count) in enumerate([("good", 3), ("Test Teile/gut", 1), ("Test Teile/kratzer", 2)]):
        for index in range(count):
            rgb, xyz = frame(10 * start + index)
            folder, name = root / place, f"Gehäuse v1.{index} links"
            write_image(folder / f"{name}_color.png", rgb.repeat(2, axis=0).repeat(2, axis=1))
            write_depth(folder / f"{name}_depth.png", np.nan_to_num(np.round(1000 * xyz[..., 2])))
            if "kratzer" in place:
                write_mask(folder / f"{name}_mask.png", outline().repeat(2, axis=0).repeat(2, axis=1))
    (root / "protoad.toml").write_text(OWN, encoding="utf-8")
    (root / "camera.json").write_text(json.dumps({"_fx": FOCAL, "_fy": FOCAL, "_cx": 7.5, "_cy": 5.5}))
    return root


def ply(xyz: np.ndarray, coding: str = "ascii", grid: str = "") -> bytes:
    """By hand: colour between the coordinates, and a face after the points."""
    rows = xyz.reshape(-1, 3)
    head = f"ply\nformat {coding} 1.0\ncomment by hand\n{grid}element vertex {len(rows)}\n"
    head += "property float x\nproperty float y\nproperty uchar red\nproperty double z\n"
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if coding == "ascii":
        return (head + "".join(f"{x:.9g} {y:.9g} 7 {z:.17g}\n" for x, y, z in rows) + "3 0 1 2\n").encode()
    order = ">" if coding.endswith("big_endian") else "<"
    points = b"".join(struct.pack(f"{order}ffBd", x, y, 7, z) for x, y, z in rows)
    return head.encode() + points + struct.pack(f"{order}B3i", 3, 0, 1, 2)


def pcd(xyz: np.ndarray, coding: str = "ascii") -> bytes:
    height, width = xyz.shape[:2]
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb normal\nSIZE 4 4 4 4 4\nTYPE F F F U F\nCOUNT 1 1 1 1 3\n"
    head += f"WIDTH {width}\nHEIGHT {height}\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {height * width}\nDATA {coding}\n"
    rows = xyz.reshape(-1, 3)
    if coding == "ascii":
        return head.encode() + "".join(f"{x:.9g} {y:.9g} {z:.9g} 5 0 0 1\n" for x, y, z in rows).encode()
    return head.encode() + b"".join(struct.pack("<fffI3f", x, y, z, 5, 0, 0, 1) for x, y, z in rows)


def tree_hash(root: Path) -> dict[str, str]:
    """Every file below a folder and its content."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
