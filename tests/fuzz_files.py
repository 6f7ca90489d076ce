"""Reads mutated files of every kind, in a process of its own with little memory: python tests/fuzz_files.py COUNT SEED.

Prints one line of JSON: how many were read and refused, what went wrong, the slowest and the memory it took.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import miniatures
import numpy as np
import tifffile
from PIL import Image

from protoad.data import (
    DataWarning,
    Folder,
    RealIADD3,
    read_cloud,
    read_depth,
    read_mask,
    read_normals,
    read_rgb,
    read_xyz,
)
from protoad.data.eyecandies import read_depth_range
from protoad.errors import DataError

MEMORY = 1 << 30  # bytes beyond what the imports take
SECONDS = 10


class Kind(NamedTuple):
    name: str
    data: bytes
    read: Callable[[Path], object]


def kinds(folder: Path) -> list[Kind]:
    rng = np.random.default_rng(0)
    rgb, xyz = miniatures.frame(0, (40, 50))
    depth = rng.integers(0, 65536, (40, 50)).astype(np.uint16)
    mask = Image.fromarray(rgb[..., 0] > 128).convert("P")
    alpha = Image.fromarray(np.concatenate([rgb, rgb[..., :1]], axis=-1))
    listed = miniatures.real_iad_lists(folder / "listed")
    own = miniatures.own_files(folder / "own")

    flags = {"train.rgb": "good/*_color.png", "train.depth": "good/*_depth.png"}

    def toml(path: Path) -> None:
        for split in ("train", "validation", "test"):
            try:
                list(Folder(own, "own", split, config=path))
            except DataError as error:
                if not any(str(place) in str(error) for place in (path, own)):
                    raise RuntimeError(f"names no file: {error}") from error

    def camera(path: Path) -> None:
        list(Folder(own, "own", "train", **flags, camera=path))

    def entries(path: Path) -> None:
        target = listed / "realiad_d3_jsons" / "knob_cap.json"
        target.write_bytes(path.read_bytes())
        try:
            list(RealIADD3(listed, "knob_cap", "test"))
        except DataError as error:
            if str(listed) not in str(error):
                raise RuntimeError(f"names no file: {error}") from error

    return [
        Kind("rgb.png", _image(Image.fromarray(rgb), "PNG"), read_rgb),
        Kind("rgba.png", _image(alpha, "PNG"), read_rgb),
        Kind("rgb.jpg", _image(Image.fromarray(rgb), "JPEG"), read_rgb),
        Kind("normals.png", _image(Image.fromarray(rgb), "PNG"), read_normals),
        Kind("rgb.bmp", _image(Image.fromarray(rgb), "BMP"), read_rgb),
        Kind("rgb.tif", _image(Image.fromarray(rgb), "TIFF"), read_rgb),
        Kind("mask.png", _image(Image.fromarray(rgb[..., 0] // 64), "PNG"), read_mask),
        Kind("palette.png", _image(mask, "PNG"), read_mask),
        Kind("depth.png", _image(Image.fromarray(depth), "PNG"), read_depth),
        Kind("depth.tiff", _tiff(depth), read_depth),
        Kind("depth.npy", _npy(xyz[..., 2]), read_depth),
        Kind("xyz.tiff", _tiff(xyz, photometric="rgb"), read_xyz),
        Kind("deflated.tiff", _tiff(xyz, photometric="rgb", compression="zlib"), read_xyz),
        Kind("tiled.tiff", _tiff(xyz, photometric="rgb", tile=(16, 16)), read_xyz),
        Kind("big.tiff", _tiff(xyz, photometric="rgb", bigtiff=True, rowsperstrip=3), read_xyz),
        Kind("range.yaml", b"normalization:\n  max: 4.903090000152588\n  min: 2.3110647201538086\n", read_depth_range),
        Kind("own.toml", (own / "protoad.toml").read_bytes(), toml),
        Kind("camera.json", (own / "camera.json").read_bytes(), camera),
        Kind("list.json", (listed / "realiad_d3_jsons" / "knob_cap.json").read_bytes(), entries),
        Kind("ascii.ply", miniatures.ply(xyz), read_cloud),
        Kind("binary.ply", miniatures.ply(xyz, "binary_little_endian"), read_cloud),
        Kind("ascii.pcd", miniatures.pcd(xyz), read_cloud),
        Kind("binary.pcd", miniatures.pcd(xyz, "binary"), read_cloud),
    ]


def _image(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _tiff(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


WORDS = [
    b"nan",
    b"inf",
    b"-1",
    b"0",
    b"1e999",
    b"99999999999999999999",
    b"\x00",
    b"[" * 2000,
    b'"',
    b"{",
    b"*",
    b"/",
    b"\xff\xfe",
]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three wounds: at the head more often than not, since what is said there decides how the rest is read."""
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(min(len(data), 300) if rng.random() < 0.6 else len(data) or 1))
        length = int(rng.integers(1, 40))
        match rng.integers(8):
            case 0:
                data = data[:place]
            case 1:
                data = data[:place] + data[place + length :]
            case 2:
                data = data[:place] + rng.bytes(length) + data[place:]
            case 3:
                data = data[:place] + rng.bytes(int(rng.integers(1, 5))) + data[place + 4 :]
            case 4:
                data = data[:place] + struct.pack("<I", int(2 ** rng.integers(32)) - 1) + data[place + 4 :]
            case 5:
                data = data[:place] + struct.pack(">I", int(2 ** rng.integers(32)) - 1) + data[place + 4 :]
            case 6:
                data = data[:place] + WORDS[rng.integers(len(WORDS))] + data[place + length :]
            case _:
                other = int(rng.integers(len(data) or 1))
                data = data[:place] + data[other : other + length] + data[place:]
        if not data:
            return data
    return _with_checksums(data) if data[:4] == b"\x89PNG" and rng.random() < 0.7 else data


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks all fit their checksums again, so that the decoder goes on into what was mutated."""
    fixed, place = bytearray(data), 8
    while place + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, place)
        if place + 12 + length > len(fixed):
            break
        struct.pack_into(">I", fixed, place + 8 + length, zlib.crc32(fixed[place + 4 : place + 8 + length]))
        place += 12 + length
    return bytes(fixed)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def _in_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def run(count: int, seed: int) -> dict[str, object]:
    """Reads `count` mutated files, spread over all kinds."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("ignore", DataWarning)  # of millimetres, when "mm" was mutated to "m"
    rng = np.random.default_rng(seed)
    refused, failures, slowest = 0, list[str](), (0.0, "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = kinds(folder)
        for kind in known:
            (folder / kind.name).write_bytes(kind.data)
            kind.read(folder / kind.name)  # what isn't mutated can be read
        for index in range(count):
            kind = known[index % len(known)]
            path = folder / f"{index}-{kind.name}"
            path.write_bytes(mutate(kind.data, rng))
            start = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                kind.read(path)
            except DataError as error:
                refused += 1
                if str(path) not in str(error):
                    failures.append(f"{path.name} isn't named: {error}")
                if _in_memory(error):
                    failures.append(f"{path.name} wants too much memory: {error}")
            except BaseException:
                failures.append(f"{path.name}: {traceback.format_exc(limit=-3)}")
            finally:
                signal.alarm(0)
            slowest = max(slowest, (time.perf_counter() - start, path.name))
            path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"files": count, "refused": refused, "failures": failures, "slowest": slowest, "peak_mb": round(peak)}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
