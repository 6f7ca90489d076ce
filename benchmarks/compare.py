"""How fast `protoad.ops` is beside other ways to the same transport plan: `python benchmarks/compare.py`.

Everything runs in one process on the same inputs, in turns of random order, and nothing is timed before its result was
held against the reference. Each rival gets its cost in the order of axes that it is faster with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Before numpy is loaded, or it could not be held to one thread; rivals that need it are timed on one thread only.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import torch
from sections import SECTIONS, Case, Settings


def show(case: Case) -> None:
    """Prints a case as a table."""
    extra = "".join(f" {name} {case[name]}" for name in ("epsilon", "target", "iterations") if name in case)
    shape = " ".join(map(str, case["shape"]))
    print(f"\n{case['section']}, b n k {shape}{extra}, {case['unit']}, threads: {case['threads']}")
    for row in case["rows"]:
        if "failed" in row:
            print(f"  {row['name']:30} {row['failed']}")
        else:
            low, median, high = row["ratio"]
            amount = f"{row['bytes'] / 1e6:9.2f} MB" if "bytes" in row else f"{row['ms'][1]:9.3f} ms"
            print(f"  {row['name']:30} {amount} {median:8.2f} ({low:.2f} to {high:.2f})", flush=True)


def machine(device: str) -> dict[str, str]:
    """Gives what the figures depend on."""
    facts = {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = str(torch.version.cuda)
    for name in ("torch", "triton", "numpy", "pot", "geomloss", "flash-sinkhorn"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def processor() -> str:
    """Gives the name that Linux has for the CPU, or what the platform knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    """Gives the commit that is measured, with a plus if the working tree differs from it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "../src", "../kernels") else "")


def arguments() -> argparse.Namespace:
    """Gives what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="more than 1 needs an idle machine")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="two shapes, one thread, nothing compiled")
    parser.add_argument("--tokens-first", action="store_true", help="rivals' costs as tokens @ prototypes.T")
    parser.add_argument("--out", type=Path, help="where the JSON goes; default benchmarks/results/<device>.json")
    return parser.parse_args()


def main() -> None:
    """Runs what was asked for; ends with an error if protoad itself failed anywhere."""
    options = arguments()
    out = options.out or Path(__file__).parent / "results" / f"{options.device}.json"
    warnings.filterwarnings("ignore", message="Warning: numerical errors")
    report: dict[str, Any] = {
        "device": options.device,
        "quick": options.quick,
        "tokens_first": options.tokens_first,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(options.device),
        "cases": [],
    }
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    for threads in [1] if options.quick or options.device == "cuda" else options.threads:
        torch.set_num_threads(threads)
        settings = Settings(options.device, threads, options.quick, options.tokens_first)
        for section in options.sections:
            for case in SECTIONS[section](settings):
                show(case)
                report["cases"].append(case)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    failed = [
        row["name"]
        for case in report["cases"]
        for row in case["rows"]
        if row["name"].startswith("protoad") and "failed" in row and "graph" not in case["unit"]
    ]
    if failed:
        sys.exit(f"protoad itself failed: {', '.join(sorted(set(failed)))}")


if __name__ == "__main__":
    main()
