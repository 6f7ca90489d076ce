"""What the interpreter cannot tell: that every kernel fits into the registers and the shared memory of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import protoad_kernels
import pytest

HERE, KERNELS = Path(__file__).parent, Path(protoad_kernels.__file__).parent
# Bytes of shared memory that a program can have.
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """In a process of its own: in this one, kernels may belong to the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(HERE.parents[1] / "src"), str(KERNELS.parent), environment.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, str(HERE / "cross_compile.py")],
        env=environment | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_kernel_compiles_for_every_target(compiled: list[dict]) -> None:
    names = {
        line.removeprefix("def ").partition("(")[0]
        for file in KERNELS.glob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith("def _") and line.partition("(")[0].endswith("_kernel")
    }
    assert names
    assert {(row["kernel"], row["target"]) for row in compiled} == {
        (name, target) for name in names for target in SHARED
    }


def test_no_register_is_spilled(compiled: list[dict]) -> None:
    assert not [row for row in compiled if row["stack"] or row["local"]]


def test_shared_memory_is_within_limits(compiled: list[dict]) -> None:
    assert not [row for row in compiled if row["shared"] > SHARED[row["target"]]]
