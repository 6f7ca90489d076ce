"""How fast and how exact normals are, beside Open3D and a plain box filter: writes docs/normals.md.

    python benchmarks/normals.py [--out benchmarks/results/normals.json]

Needs Open3D; the angles need PROTOAD_DATA. Only ratios within a run mean something: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import machine
from measure import clock_for, race, spread
from scipy.ndimage import uniform_filter

from protoad._lazy import require_open3d
from protoad.data import Eyecandies, find_foreground, normals_from_xyz

SIZES = (224, 400, 800)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "normals.md"
INTRODUCTION = (
    "`normals_from_xyz` has three ways. `grid`, the default, fits planes to windows on the pixel grid that keep to",
    "one side of depth edges and creases; the same torch operation, `grid_normals`, takes batches, on a GPU too,",
    "where it was not measured. `knn` fits one to the 30 nearest points in space, as the paper does, and equals",
    "Open3D to 0.01 degrees; `open3d` calls Open3D. They face the camera, or agree with their neighbours",
    "(`orient='tangent_plane'`).",
)
Ways = dict[str, Callable[[np.ndarray], np.ndarray]]


def scene(size: int) -> np.ndarray:
    """Half a ball on a tilted table, (y x 3) metres, with the noise of a good sensor."""
    rng = np.random.default_rng(0)
    v, u = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    ball = np.sqrt(np.clip(0.15**2 - u**2 - v**2, 0, None))
    z = 0.6 + 0.1 * u + 0.05 * v - 0.3 * ball + rng.normal(0, 2e-5, u.shape)
    return np.stack([0.4 * u * z, 0.4 * v * z, z], axis=-1).astype(np.float32)


def open3d_estimate(xyz: np.ndarray) -> Any:
    """`estimate_normals(knn=30)` of the valid points."""
    open3d = require_open3d()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz.reshape(-1, 3).astype(np.float64)))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(30))
    return cloud


def open3d_oriented(xyz: np.ndarray) -> Any:
    """The same, oriented as the paper does (B.2)."""
    cloud = open3d_estimate(xyz)
    cloud.orient_normals_consistent_tangent_plane(50)
    return cloud


def box_filter(xyz: np.ndarray) -> np.ndarray:
    """Cross product of the differences of a cloud smoothed by a 5 x 5 box: fast, and blind to edges."""
    smooth = uniform_filter(xyz.astype(np.float64), (5, 5, 0))
    normals = np.cross(np.gradient(smooth, axis=1), np.gradient(smooth, axis=0))
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-30)


def timings(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds and ratios to `grid`, at every size."""
    found = []
    for size in sizes:
        xyz = scene(size)
        calls: dict[str, Callable[[], object]] = {
            "grid": lambda xyz=xyz: normals_from_xyz(xyz),  # type: ignore[misc]
            "knn": lambda xyz=xyz: normals_from_xyz(xyz, method="knn"),  # type: ignore[misc]
            "knn, tangent plane": lambda xyz=xyz: normals_from_xyz(xyz, method="knn", orient="tangent_plane"),  # type: ignore[misc]
            "Open3D estimate": lambda xyz=xyz: open3d_estimate(xyz),  # type: ignore[misc]
            "Open3D estimate, tangent plane": lambda xyz=xyz: open3d_oriented(xyz),  # type: ignore[misc]
        }
        unit, clock = clock_for("cpu", 1)
        expected = {}
        for name, call in calls.items():
            start = time.process_time()
            call()
            expected[name] = time.process_time() - start
        samples = race(calls, expected, "grid", clock, 1.0)
        base = samples["grid"]
        for name, seconds in samples.items():
            ratios = [one / other for one, other in zip(seconds, base, strict=False)]
            found.append(
                {"size": size, "name": name, "unit": unit, "seconds": spread(seconds), "ratio": spread(ratios)}
            )
    return found


def angles(root: Path) -> list[dict[str, Any]]:
    """Degrees off the renderer's own normals, over the parts of CandyCane's test split."""
    ways: Ways = {
        "grid": lambda xyz: normals_from_xyz(xyz).normals,
        "knn": lambda xyz: normals_from_xyz(xyz, method="knn").normals,
        "Open3D": lambda xyz: normals_from_xyz(xyz, method="open3d").normals,
        "5 x 5 box filter": box_filter,
    }
    given = Eyecandies(root / "eyecandies", "CandyCane", "test", normals="given")
    off: dict[str, dict[str, list[np.ndarray]]] = {name: {"frame": [], "part": []} for name in ways}
    for sample in given:
        part = find_foreground(sample.xyz).mask
        assert sample.normals is not None
        for name, way in ways.items():
            cosine = np.abs((way(sample.xyz) * sample.normals).sum(-1)).clip(0, 1)
            degrees = np.degrees(np.arccos(cosine))
            off[name]["frame"].append(degrees.ravel())
            off[name]["part"].append(degrees[part])
    return [
        {"name": name, "where": where, "degrees": np.percentile(np.concatenate(values), [50, 90, 99]).tolist()}
        for name, places in off.items()
        for where, values in places.items()
    ]


def page(report: dict[str, Any]) -> str:
    """The page, from what was measured."""
    lines = [
        "# Normals",
        "",
        *INTRODUCTION,
        "",
        f"Written by `python benchmarks/normals.py`: {report['date']}, {report['machine']['processor']}, one thread,",
        "CPU time.",
        "",
        "## Time",
        "",
        "Half a ball on a table. A ratio is a time over that of `grid` in the same round.",
        "",
        "| | " + " | ".join(f"{size} px" for size in report["sizes"]) + " |",
        "| --- |" + " --- |" * len(report["sizes"]),
    ]
    for name in dict.fromkeys(row["name"] for row in report["timings"]):
        cells = [row for row in report["timings"] if row["name"] == name]
        lines.append(
            f"| {name} | " + " | ".join(f"{r['seconds'][1] * 1e3:.3g} ms ({r['ratio'][1]:.3g})" for r in cells) + " |"
        )
    lines += [
        "",
        "## Angle to the true normals",
        "",
        "Eyecandies CandyCane, 12 test frames: normals of the rendered depth against the renderer's own, degrees.",
        "Relief that only the normals show, no depth can tell.",
        "",
        "| | frame: median | 90 % | 99 % | part: median | 90 % | 99 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["name"] for row in report["angles"]):
        values = [value for row in report["angles"] if row["name"] == name for value in row["degrees"]]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "normals.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = os.environ.get("PROTOAD_DATA")
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("cpu"),
        "sizes": SIZES,
        "timings": timings(SIZES),
        "angles": angles(Path(data)) if data else [],
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    PAGE.write_text(page(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
