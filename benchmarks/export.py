"""How fast an exported detector judges parts: eager PyTorch, torch.compile, ONNX Runtime, on one thread of a CPU.

    python benchmarks/export.py [--quick] [--out benchmarks/results/export.json]
    python benchmarks/export.py --page        # writes the table in docs/export.md from that file

Only ratios within a run mean something: the machine may be busy. Nothing is timed before its scores agree to 1e-3.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from measure import clock_for, race, spread
from pirn import PIRNConfig, PIRNDetector
from pirn.export import DeployedDetector, Inputs, export_detector

from protoad.data import find_foreground, prepare, render_part

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "export.json", ROOT / "docs" / "export.md"
START, END = "<!-- timings: written by benchmarks/export.py -->\n", "<!-- end of timings -->"
ENCODERS = {"MobileNetV2": "timm:mobilenetv2_100,pad_type=same,weights=random"}
CASES: list[tuple[str, Inputs]] = [("MobileNetV2", "prepared"), ("MobileNetV2", "frames")]
BATCHES = (1, 8)
FRAME = 400  # pixels


def measure(encoder: str, inputs: Inputs, seconds: float, size: int) -> list[dict[str, Any]]:
    """Rows of one exported detector, one per batch size."""
    samples = [render_part("cookie", seed=seed, size=FRAME) for seed in range(max(BATCHES))]
    parts = [prepare(sample, size) for sample in samples]
    pirn = PIRNDetector(PIRNConfig(encoder=ENCODERS[encoder], image_size=size, epochs=1), category="cookie")
    pirn.fit(parts[:3], ["0", "1", "2"])
    module = DeployedDetector(pirn, inputs)
    if inputs == "prepared":
        stacks = [torch.stack([getattr(part, name) for part in parts]) for name in module.names]
    else:
        frames = [{"rgb": s.rgb, "xyz": s.xyz, "foreground": find_foreground(s.xyz).mask} for s in samples]
        stacks = [torch.from_numpy(np.stack([frame[name] for frame in frames])) for name in module.names]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        start = time.process_time()
        export_detector(pirn, pirn.save(folder), path, inputs=inputs)
        exporting = time.process_time() - start
        megabytes = path.stat().st_size / 1e6
        session = _session(path)
    rows = []
    for batch in BATCHES:
        given = tuple(stack[:batch].contiguous() for stack in stacks)
        arrays = {name: one.numpy() for name, one in zip(module.names, given, strict=True)}
        calls: dict[str, Callable[[], Any]] = {"eager": lambda given=given: module(*given)[0].numpy()}
        if inputs == "prepared":  # the normals' loops over tiles are no work for a compiler
            compiled = torch.compile(module)
            calls["torch.compile"] = lambda given=given, compiled=compiled: compiled(*given)[0].numpy()
        calls["ONNX Runtime"] = lambda arrays=arrays: session.run(["score"], arrays)[0]
        row = {"encoder": encoder, "inputs": inputs, "batch": batch, "MB": megabytes, "export, s": exporting}
        with torch.inference_mode():
            rows.append({**row, **_race(calls, seconds)})
    return rows


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _race(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Milliseconds and ratios to eager, of what agrees with it."""
    unit, clock = clock_for("cpu", 1)
    expected, score, off = {}, calls["eager"](), {}
    for name, call in calls.items():
        off[name] = float(np.abs(call() - score).max())  # compiles, too
        if not off[name] < 1e-3:
            raise RuntimeError(f"{name}: scores are off by {off[name]:.1e}")
        expected[name] = clock(call, 1)
    samples = race(calls, expected, "eager", clock, seconds)
    return {
        "unit": unit,
        "ways": {
            name: {
                "ms": 1e3 * spread(values).median,
                "times eager": list(spread([v / e for v, e in zip(values, samples["eager"], strict=False)])),
                "score off by": off[name],
            }
            for name, values in samples.items()
        },
    }


def table(results: dict[str, Any]) -> str:
    """The page's table: time over that of eager PyTorch in the same round, median and quartiles."""
    lines = [
        "| encoder | inputs | batch | eager | torch.compile | ONNX Runtime |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        cells = [f"{row['ways']['eager']['ms']:.0f} ms"]
        for name in ("torch.compile", "ONNX Runtime"):
            low, median, high = row["ways"].get(name, {}).get("times eager", (None,) * 3)
            cells.append("" if median is None else f"{median:.2f} times ({low:.2f} to {high:.2f})")
        lines.append(f"| {row['encoder']} | {row['inputs']} | {row['batch']} | {' | '.join(cells)} |")
    machine = results["machine"]
    note = (
        f"CPU time of one thread, {results['image size']} px, 20 Sinkhorn iterations; torch {machine['torch']}, "
        f"onnxruntime {machine['onnxruntime']}. Below 1 is faster than eager."
    )
    return "\n".join([note, "", *lines]) + "\n"


def write_page(results: dict[str, Any]) -> None:
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + table(results) + END + rest.split(END, 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, short rounds: no result")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write what was measured as JSON")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page's table")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(json.loads(RESULTS.read_text()))
        return
    torch.set_num_threads(1)
    seconds, size = (0.2, 96) if arguments.quick else (3.0, 224)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    results: dict[str, Any] = {"quick": arguments.quick, "machine": machine, "image size": size, "rows": []}
    for encoder, inputs in CASES:
        results["rows"] += measure(encoder, inputs, seconds, size)
        print(table(results), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
