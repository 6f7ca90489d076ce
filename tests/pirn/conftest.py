"""A small detector, trained and calibrated once for the tests that only ask it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pirn.cli import main

from protoad.data import write_dataset

FAST = ["--image-size", "96", "--epochs", "2", "--num-prototypes", "4"]


@pytest.fixture(scope="session")
def cookies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cookies")
    write_dataset(root, parts=("cookie",), train=4, validation=4, test_good=2, test_per_defect=1, seed=0, size=96)
    return root


@pytest.fixture(scope="session")
def calibrated(cookies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the checkpoint; not to be changed."""
    out = tmp_path_factory.mktemp("calibrated")
    data = ["--root", str(cookies)]
    assert main(["train", *data, "--category", "cookie", "--shots", "3", *FAST, "--out", str(out)]) == 0
    assert main(["calibrate", "--checkpoint", str(out), *data, "--false-reject-rate", "0.2"]) == 0
    return out
