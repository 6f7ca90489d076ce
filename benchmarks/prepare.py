"""How fast parts are prepared: background removal beside Open3D, whole data sets in one and two processes, reading.

    python benchmarks/prepare.py [--quick] [--out benchmarks/results/prepare.json]

Only ratios within a run mean something: the machine may be busy.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import clock_for, race, spread

from protoad.data import (
    MVTec3D,
    PreparedSet,
    PrepareSettings,
    find_foreground,
    normals_from_xyz,
    prepare,
    prepare_dataset,
    write_dataset,
)
from protoad.encoders import build_encoder

SIZES = (224, 400, 800)


class Scene(NamedTuple):
    """A cloud (y x 3) in metres and what stands in it: masks (y x) by name."""

    xyz: np.ndarray
    things: dict[str, np.ndarray]


def scene(size: int) -> Scene:
    """Half a ball, a broken-off piece and a wire on a tilted table 20 cm wide, with noise and gaps of a real sensor."""
    rng = np.random.default_rng(0)
    v, u = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    rays = np.stack([0.4 * u, 0.4 * v, np.ones_like(u)], axis=-1)
    normal = np.array([0.1, 0.3, -1]) / np.linalg.norm([0.1, 0.3, -1])
    facing = rays @ normal
    ball = 0.2**2 - (u + 0.05) ** 2 - v**2
    things = {
        "ball": ball > 0.02**2,
        "piece": (np.abs(u - 0.33) < 0.04) & (np.abs(v + 0.3) < 0.03),
        "wire": (np.abs(u - 0.1 * np.sin(9 * v) - 0.36) < 0.7 / 224) & (np.abs(v - 0.15) < 0.2),
    }
    height = np.where(things["ball"], 0.2 * np.sqrt(np.maximum(ball, 0)) + 0.008, 0)
    height += 0.012 * things["piece"] + 0.008 * (things["wire"] & ~things["ball"])
    depth = (height + 0.5 * normal[2]) / facing + rng.normal(0, 3e-4, u.shape)
    xyz = (rays * depth[..., None]).astype(np.float32)
    xyz[rng.random(u.shape) < 0.2] = np.nan
    return Scene(xyz, things)


def remove_as_protocol(open3d: Any, ransac_n: int, xyz: np.ndarray) -> np.ndarray:
    """The mask of the preprocessing that 3D-ADS began and most detectors copy: Open3D's plane, DBSCAN, one cluster.

    Kept as it is, with noise (label -1) among the candidates for the largest cluster.
    """
    valid = np.isfinite(xyz).all(axis=-1)
    border = np.concatenate([xyz[:10], xyz[-10:], xyz[:, :10].swapaxes(0, 1), xyz[:, -10:].swapaxes(0, 1)], axis=1)
    border = border[np.isfinite(border).all(axis=-1)].astype(float)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(border))
    (*normal, offset), _ = cloud.segment_plane(distance_threshold=0.004, ransac_n=ransac_n, num_iterations=1000)
    rest = valid & (np.abs(np.nan_to_num(xyz.astype(float)) @ normal + offset) > 0.005)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz[rest].astype(float)))
    labels = np.asarray(cloud.cluster_dbscan(eps=0.006, min_points=30))
    names, counts = np.unique(labels, return_counts=True)
    mask = np.zeros(valid.shape, dtype=bool)
    mask[rest] = labels == names[counts.argmax()]
    return mask


def compare_background(size: int, seconds: float) -> dict[str, Any]:
    """Times and what each way finds of the things in the scene, and of the table."""
    open3d = load_open3d()
    made = scene(size)
    removers: dict[str, Callable[[np.ndarray], np.ndarray]] = {"protoad": lambda xyz: find_foreground(xyz).mask}
    if open3d is not None:
        removers["Open3D, as published"] = lambda xyz: remove_as_protocol(open3d, 50, xyz)
        removers["Open3D, three points per trial"] = lambda xyz: remove_as_protocol(open3d, 3, xyz)
    valid = np.isfinite(made.xyz).all(axis=-1)
    table = valid & ~np.any(list(made.things.values()), axis=0)
    rows, expected = {}, {}
    for name, remove in removers.items():
        if open3d is not None:
            open3d.utility.random.seed(0)
        start = time.perf_counter()
        found = remove(made.xyz)
        expected[name] = time.perf_counter() - start
        rows[name] = {
            "found": {thing: float(found[mask & valid].mean()) for thing, mask in made.things.items()},
            "table kept": float(found[table].mean()),
        }
    unit, clock = clock_for("cpu", 1)
    calls = {name: (lambda remove=remove: remove(made.xyz)) for name, remove in removers.items()}
    samples = race(calls, expected, "protoad", clock, seconds)
    for name, row in rows.items():
        row["ms"] = 1e3 * spread(samples[name]).median
        row["times protoad"] = _ratios(samples[name], samples["protoad"][: len(samples[name])])
    return {"size": size, "unit": unit, "rows": rows}


def load_open3d() -> Any:
    """Open3D with the libusb that slim machines lack, or None."""
    try:
        library = importlib.import_module("libusb_package").get_library_path()
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        return importlib.import_module("open3d")
    except (ImportError, OSError):
        return None


def measure_throughput(root: Path, out: Path, rounds: int) -> dict[str, Any]:
    """Frames per second of a data set in one and two processes: from the call, and once the processes have started.

    Beside it what the machine gave at that moment: a fixed piece of work in two processes over one. Other processes
    that compete for the cores lower both.
    """
    settings = {"tile": PrepareSettings()}
    whole: dict[int, list[float]] = {1: [], 2: []}
    steady: dict[int, list[float]] = {1: [], 2: []}
    spun: dict[int, list[float]] = {1: [], 2: []}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(spin, [1, 1]))
        for turn in range(rounds):
            for jobs in (1, 2) if turn % 2 == 0 else (2, 1):
                start = time.perf_counter()
                list(pool.map(spin, [4] if jobs == 1 else [4, 4]))
                spun[jobs].append(jobs / (time.perf_counter() - start))
                ticks = [time.perf_counter()]
                note = lambda *_, ticks=ticks: ticks.append(time.perf_counter())  # noqa: E731
                prepare_dataset("mvtec3d", root, out / f"{turn}-{jobs}", settings, jobs=jobs, on_part=note)
                whole[jobs].append((len(ticks) - 1) / (ticks[-1] - ticks[0]))
                steady[jobs].append((len(ticks) - 3) / (ticks[-1] - ticks[2]))
    start = time.perf_counter()
    kept = len(prepare_dataset("mvtec3d", root, out / "0-1", settings))
    again = kept / (time.perf_counter() - start)
    return {
        "frames": kept,
        "frame": 400,
        "frames per second": {str(jobs): spread(values).median for jobs, values in whole.items()},
        "two processes over one": _ratios(whole[2], whole[1]),
        "two processes over one, without their start": _ratios(steady[2], steady[1]),
        "two processes over one, what the machine gave": _ratios(spun[2], spun[1]),
        "nothing to do over all to do": again / spread(whole[1]).median,
    }


def spin(times: int) -> None:
    """Work that needs a core and little memory."""
    values = np.random.default_rng(0).random(20_000)
    for _ in range(1_000 * times):
        np.sort(values)


def _ratios(values: list[float], base: list[float]) -> list[float]:
    return list(spread([value / other for value, other in zip(values, base, strict=True)]))


def measure_reading(root: Path, cache: Path, seconds: float) -> dict[str, Any]:
    """Times of reading a prepared part, of making it, of its stages, and of what comes after."""
    source, parts = MVTec3D(root, "tile", "train"), PreparedSet(cache, "tile", "train")
    sample, part = source[0], parts[0]
    encoder = build_encoder("filter_bank", weights=None, image_size=224, seed=0)
    encoder.fit(torch.stack([part.rgb]), torch.ones((1, np.prod(encoder.grid(224))), dtype=torch.bool))
    calls: dict[str, Callable[[], object]] = {
        "read a prepared part": lambda: parts[0],
        "read and prepare it": lambda: prepare(source[0]),
        "its files alone": lambda: source[0],
        "its normals alone": lambda: normals_from_xyz(sample.xyz),
        "its foreground alone": lambda: find_foreground(sample.xyz),
        "encode one of its images (filter bank)": lambda: encoder(part.rgb[None]),
    }
    expected = {}
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        expected[name] = time.perf_counter() - start
    unit, clock = clock_for("cpu", 1)
    with torch.inference_mode():
        samples = race(calls, expected, "read a prepared part", clock, seconds)
    base = spread(samples["read a prepared part"]).median
    rows = {
        name: {"ms": 1e3 * spread(v).median, "times reading": spread(v).median / base} for name, v in samples.items()
    }
    size = next((cache / "tile").rglob("*.npz")).stat().st_size
    return {"unit": unit, "bytes per part": size, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few frames, short rounds: no result")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write what was measured as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds, frames, rounds = (0.2, 4, 1) if arguments.quick else (3.0, 64, 3)
    results: dict[str, Any] = {
        "quick": arguments.quick,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load at the start": os.getloadavg()[0],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "open3d": getattr(load_open3d(), "__version__", "not installed"),
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "cache"
        write_dataset(root, parts=["tile"], train=frames, validation=0, test_good=0, test_per_defect=0, size=400)
        results["prepare"] = measure_throughput(root, out, rounds)
        results["reading"] = measure_reading(root, out / "0-1", seconds)
    results["background"] = [compare_background(size, seconds) for size in SIZES[: 1 if arguments.quick else None]]
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":  # workers import this file again
    main()
