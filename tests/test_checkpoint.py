"""Checkpoints: what goes in comes out, and nothing else does."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from protoad import CheckpointError
from protoad.checkpoint import load_checkpoint, save_checkpoint

TENSORS = {"b.weight": torch.randn(3, 4), "a": torch.arange(5), "flag": torch.tensor(True)}
HEADER = {"config": {"epsilon": 0.05}, "shots": ["train/good/000"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "checkpoint.safetensors"
    save_checkpoint(path, TENSORS, HEADER)
    return path


def test_round_trip(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.header == {**HEADER, "format": 1}
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(checkpoint.tensors[name], tensor, rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_no_mutation_loads_something_else(path: Path) -> None:
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(bad))
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            refused += 1
            continue
        assert loaded.header == {**HEADER, "format": 1}
        assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert refused > 250


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_truncation_is_named(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors: damaged"):
        load_checkpoint(path)


def test_a_pickle_is_never_opened(path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (path.with_name("executed"),)

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not path.with_name("executed").exists()


def test_foreign_and_newer_files_are_named(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of protoad"):
        load_checkpoint(path)
    from protoad import checkpoint

    text = json.dumps({"format": 99})
    save_file(
        {"x": torch.ones(1)}, path, metadata={"header": text, "sha256": checkpoint._digest({"x": torch.ones(1)}, text)}
    )
    with pytest.raises(CheckpointError, match="format 99, this version reads up to 1"):
        load_checkpoint(path)


def test_missing_file_and_unwritable_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "checkpoint.safetensors", TENSORS, HEADER)
