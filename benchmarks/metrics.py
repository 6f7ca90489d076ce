"""How fast, how large and how exact the pixel metrics are, beside what the field computes them with.

    python benchmarks/metrics.py [--quick] [--out benchmarks/results/metrics.json]

Writes docs/metrics.md. All rivals get the same maps in turn; only ratios within a run mean something, as the machine
may be busy. anomalib is one of them if it is installed. Peaks of memory are read from Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from compare import commit, machine
from measure import spread
from scipy.ndimage import gaussian_filter, label

from protoad.encoders.timm_weights import _import_timm
from protoad.metrics import MetricsAccumulator, aupro, pixel_auroc

CASES = ((100, 224), (1000, 224), (100, 400), (1000, 400))
LIMIT = 0.3
PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
BASELINE = "protoad"
MOST_SECONDS = 5.0  # of a rival's first call; a slower one is not called again
TOO_MANY = 60_000_000  # pixels for a loop over thresholds
BYTES = {"sorted curve, NumPy": 50, "anomalib": 70}  # that a rival needs per pixel, as measured on the smaller cases


class Scene(NamedTuple):
    """Heatmaps and masks, (b y x)."""

    maps: np.ndarray
    masks: np.ndarray


Rival = Callable[[Scene], float]


def scene(number: int, size: int) -> Scene:
    """Smooth float32 heatmaps; in every other one, one to three rectangles are marked and score somewhat higher."""
    rng = np.random.default_rng(0)
    maps, masks = np.empty((number, size, size), np.float32), np.zeros((number, size, size), bool)
    backgrounds = [10 * gaussian_filter(rng.normal(size=(size, size)), size / 56) for _ in range(8)]
    for index in range(number):
        shift = rng.integers(0, size, 2)
        maps[index] = rng.uniform(0.8, 1.2) * np.roll(backgrounds[index % 8], shift, (0, 1))
        for _ in range(rng.integers(1, 4) if index % 2 else 0):
            height, width = rng.integers(size // 20, size // 5, 2)
            y, x = rng.integers(0, size - height), rng.integers(0, size - width)
            masks[index, y : y + height, x : x + width] = True
            maps[index, y : y + height, x : x + width] += rng.uniform(0, 3)
    return Scene(maps, masks)


def regions(masks: np.ndarray) -> np.ndarray:
    """(b y x): 0, or the number of the 8-connected region in all masks."""
    labelled, found = np.zeros(masks.shape, np.int32), 0
    for index, mask in enumerate(masks):
        here, count = label(mask, np.ones((3, 3)))
        labelled[index] = np.where(here > 0, here + found, 0)
        found += count
    return labelled


def sorted_curve(given: Scene) -> float:
    """The exact curve from one descending sort of all pixels, in NumPy, as evaluation code of MVTec AD has it."""
    labelled = regions(given.masks).ravel()
    sizes = np.bincount(labelled)
    gain = np.append(0.0, 1 / (sizes[1:] * (len(sizes) - 1)))
    order = np.argsort(given.maps.ravel())[::-1]
    falling = given.maps.ravel()[order]
    last = np.append(falling[1:] != falling[:-1], True)
    fpr = np.cumsum(labelled[order] == 0)[last] / np.count_nonzero(labelled == 0)
    pro = np.cumsum(gain[labelled[order]])[last]
    return _area(np.append(0.0, fpr), np.append(0.0, pro))


def threshold_loop(given: Scene, steps: int = 200) -> float:
    """200 equal steps of the score, and for each the overlap of each region: a loop that many have copied."""
    labelled = regions(given.masks)
    where = [(labelled[index], given.maps[index]) for index in range(len(labelled)) if given.masks[index].any()]
    pixels = [scores[here == number] for here, scores in where for number in np.unique(here[here > 0])]
    num_normal = np.count_nonzero(~given.masks)
    fpr, pro = [0.0], [0.0]
    for threshold in np.linspace(given.maps.max(), given.maps.min(), steps):
        called = given.maps >= threshold
        pro.append(float(np.mean([np.mean(scores >= threshold) for scores in pixels])))
        fpr.append(np.count_nonzero(called & ~given.masks) / num_normal)
        if fpr[-1] > LIMIT:
            break
    return _area(np.array(fpr), np.array(pro))


def _area(fpr: np.ndarray, pro: np.ndarray) -> float:
    inside = fpr < LIMIT
    heights = np.append(pro[inside], np.interp(LIMIT, fpr, pro))
    return float(np.trapezoid(heights, np.append(fpr[inside], LIMIT))) / LIMIT


def streamed(given: Scene) -> float:
    """The accumulator, eight maps at a time."""
    return _accumulate(given).compute().aupro


def _accumulate(given: Scene) -> MetricsAccumulator:
    accumulator = MetricsAccumulator()
    for start in range(0, len(given.maps), 8):
        maps, masks = given.maps[start : start + 8], given.masks[start : start + 8]
        accumulator.update(maps.max((1, 2)), masks.any((1, 2)), maps, masks)
    return accumulator


@cache
def load_anomalib() -> Rival | None:
    """anomalib's AUPRO on the CPU, if it is there."""
    if find_spec("anomalib") is None:
        return None
    _import_timm()  # which makes torchvision load beside a CPU build of torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.metrics.aupro import _AUPRO

    def call(given: Scene) -> float:
        metric = _AUPRO(fpr_limit=LIMIT)
        metric.update(torch.from_numpy(given.maps), torch.from_numpy(given.masks).int())
        return float(metric.compute())

    return call


def free_memory() -> float:
    """Bytes that could be had without swapping; others may need the rest."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), float("inf"))


def peak_growth(call: Callable[[], object]) -> float | None:
    """MB by which a call raises the process's memory at most; None where that cannot be read."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be found again
        reset.write_text("5")
        before = _status(status, "VmRSS")
        call()
        return _status(status, "VmHWM") - before
    except OSError:
        return None


def _status(status: Path, name: str) -> float:
    return int(status.read_text().split(f"{name}:")[1].split()[0]) * 1024 / 1e6


def measure_case(number: int, size: int, rounds: int) -> dict[str, Any]:
    """One row per way: CPU seconds and ratio to ours, peak memory, and how far from the exact value."""
    given = scene(number, size)
    ways: dict[str, Rival] = {
        BASELINE: lambda given: aupro(given.maps, given.masks),
        "protoad, accumulator": streamed,
        "sorted curve, NumPy": sorted_curve,
    }
    anomalib = load_anomalib()
    if anomalib is not None:
        ways["anomalib"] = anomalib
    if given.maps.size <= TOO_MANY:
        ways["loop over 200 thresholds"] = threshold_loop
    ways = {name: way for name, way in ways.items() if BYTES.get(name, 0) * given.maps.size < free_memory() / 2}
    values: dict[str, float] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        way(Scene(given.maps[:4], given.masks[:4]))  # what is imported or compiled on first use
        start = time.process_time()
        grown = peak_growth(lambda name=name, way=way: values.update({name: way(given)}))  # type: ignore[misc]
        rows[name] = {"name": name, "peak_mb": grown, "seconds": [time.process_time() - start]}
    for _ in range(rounds):
        for name, way in ways.items():
            if rows[name]["seconds"][0] < MOST_SECONDS:
                start = time.process_time()
                way(given)
                rows[name]["seconds"].append(time.process_time() - start)
    base = rows[BASELINE]["seconds"]
    for name, row in rows.items():
        row["ratio"] = spread([a / b for a, b in zip(row["seconds"], base, strict=False)])
        row["seconds"] = spread(row["seconds"])
        row["off"] = abs(values[name] - values.get("sorted curve, NumPy", values[BASELINE]))
    accumulator = _accumulate(given)
    return {
        "number": number,
        "size": size,
        "rows": list(rows.values()),
        "max_error": accumulator.max_error,
        "pixel_auroc_off": abs(accumulator.compute().pixel_auroc - pixel_auroc(given.maps, given.masks)),
    }


def page(report: dict[str, Any]) -> str:
    """The page, from what was measured."""
    cases = report["cases"]
    heads = [f"{case['number']} x {case['size']} px" for case in cases]
    names = list(dict.fromkeys(row["name"] for case in cases for row in case["rows"]))

    def table(cell: Callable[[dict[str, Any]], str]) -> list[str]:
        lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(cases)]
        for name in names:
            found = [next((row for row in case["rows"] if row["name"] == name), None) for case in cases]
            lines.append(f"| {name} | " + " | ".join("-" if row is None else cell(row) for row in found) + " |")
        return lines

    bounds = ", ".join(f"{case['max_error']:.1e}" if case["max_error"] else "0" for case in cases)
    off = max(case["pixel_auroc_off"] for case in cases)
    return "\n".join(
        [
            *INTRODUCTION,
            "",
            "## Measured",
            "",
            f"Written by `python benchmarks/metrics.py`: {report['date']}, {report['machine']['processor']},",
            f"one thread, CPU time, {report['anomalib']}. Smooth float32 maps; in every other one, one to three",
            "rectangles are marked, about 1.5 % of all pixels. A dash: left out, for want of memory (anomalib needs 70",
            "bytes per pixel, the sorted curve 50) or of patience (the loop). What takes above 5 s was run once.",
            "",
            "AUPRO up to 0.3, seconds, and in brackets the ratio to `protoad.metrics.aupro` in the same round:",
            "",
            *table(lambda row: f"{row['seconds'][1]:.2g} ({row['ratio'][1]:.3g})"),
            "",
            "Peak memory beyond the maps and masks, MB:",
            "",
            *table(lambda row: "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"),
            "",
            "Difference from the sorted curve in float64, or from `aupro` where that was left out:",
            "",
            *table(lambda row: f"{row['off']:.0e}" if row["off"] else "0"),
            "",
            f"The accumulator says of these cases that AUPRO is off by at most {bounds}; its",
            f"pixel AUROC is off by at most {off:.0e}.",
            "",
        ]
    )


INTRODUCTION = (
    "# Metrics",
    "",
    "`protoad.metrics` has what the field reports of a category: image AUROC, pixel AUROC, AUPRO up to a",
    "false-positive rate of 0.3, and the best F1 of the images. All depend on the order of the scores only; ties",
    "are counted as ties.",
    "",
    "<!-- run first:",
    "import numpy as np",
    "",
    "rng = np.random.default_rng(0)",
    "masks = np.zeros((4, 32, 32), dtype=bool)",
    "masks[2:, 8:12, 8:12] = True",
    "labels = masks.any((1, 2))",
    "maps = rng.random(masks.shape) + masks",
    "image_scores = maps.max((1, 2))",
    "-->",
    "",
    "```python",
    "from protoad.metrics import MetricsAccumulator, evaluate_maps, pro_curve",
    "",
    "metrics = evaluate_maps(image_scores, labels, maps, masks)  # all at once: exact",
    "",
    "accumulator = MetricsAccumulator()  # a few images at a time: memory stays bounded",
    "accumulator.update(image_scores, labels, maps, masks)",
    "metrics, worst = accumulator.compute(), accumulator.max_error",
    "",
    "fpr, pro, thresholds = pro_curve(maps, masks, max_points=500)  # what AUPRO is the area of, for drawing",
    "```",
    "",
    "## How exactness is held",
    "",
    "Pixel metrics need one thing: for each score of a defect pixel, how many unmarked pixels score lower, and how",
    "many the same. Between two such scores the curves are straight. So only the unmarked pixels are sorted: as",
    "integers, which have the order of the floats and sort faster, and in blocks of 64 million, whose counts",
    "add up. Nothing is rounded or binned.",
    "",
    "The accumulator cannot do that: a defect may come after the pixels it is to be compared with. It keeps all",
    "defect pixels, 4 bytes each, and thins the unmarked ones. They fill a level of 16 million keys; a full level is",
    "sorted, and every fourth key goes up to the next, where it stands for four. A count of lower pixels then loses",
    "at most three keys of that level, wherever the score lies and however the scores are distributed: ties, a range",
    "of 1e-7 around 5, tails of 1e30 alike. The losses add up to a bound on AUPRO, `max_error`, that holds for every",
    "input. It is 0 up to 16 million unmarked pixels, where nothing was thinned, and below 1e-6 up to a billion;",
    "beyond that it says what it is. Memory is 64 MiB per level for float32 and twice that for float64: three levels",
    "for 1,000 maps of 400 x 400, four for 6,000. `pirn evaluate` reads, predicts and measures eight parts at a time",
    "this way.",
)


def main() -> None:
    """Measures, and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest case only, and no page")
    parser.add_argument("--rounds", type=int, default=2, help="beyond the first")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "metrics.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine("cpu"),
        "anomalib": f"anomalib {version('anomalib')}" if load_anomalib() else "anomalib was not installed",
        "cases": [],
    }
    for number, size in CASES[:1] if arguments.quick else CASES:
        case = measure_case(number, size, arguments.rounds)
        report["cases"].append(case)
        for row in case["rows"]:
            print(number, size, row, flush=True)
        if not arguments.quick:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.quick:
        return
    PAGE.write_text(page(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
