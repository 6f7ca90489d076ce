"""Checkpoints: what goes in comes out, and nothing else does."""

from __future__ import annotations

import itertools
import json
import pickle
import random
from pathlib import Path

import pytest
import torch

from protoad import CheckpointError
from protoad.checkpoint import FORMAT, ShapedByData, load_checkpoint, save_checkpoint

TENSORS = {"b.weight": torch.randn(3, 4), "a": torch.arange(5), "flag": torch.tensor(True)}
HEADER = {"config": {"epsilon": 0.05}, "shots": ["train/good/000"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "checkpoint.safetensors"
    save_checkpoint(path, TENSORS, HEADER)
    return path


def test_round_trip(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.header == {**HEADER, "format": FORMAT}
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(checkpoint.tensors[name], tensor, rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    for name in "abcdefgh":
        save_checkpoint(tmp_path / name, TENSORS, HEADER)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def _mutated(good: bytes, rng: random.Random) -> bytes:
    """One of seven kinds of damage."""
    bad, here = bytearray(good), rng.randrange(len(good))
    kind = rng.randrange(7)
    if kind == 0:
        bad[here] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del bad[here:]
    elif kind == 2:
        bad[here:here] = rng.randbytes(1)
    elif kind == 3:
        del bad[here]
    elif kind == 4:
        bad[here : here + 8] = rng.randbytes(8)
    elif kind == 5:
        bad += rng.randbytes(rng.randrange(1, 20))
    else:  # what might still be JSON
        bad[here] = ord(rng.choice('0123456789{}[]",:abc '))
    return bytes(bad)


def test_no_mutation_is_loaded(path: Path) -> None:
    good, rng = path.read_bytes(), random.Random(0)
    mutations = (bad for _ in iter(int, 1) if (bad := _mutated(good, rng)) != good)
    for bad in itertools.islice(mutations, 2000):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: "):
            load_checkpoint(path)


def test_a_forged_header_needs_its_own_digest(path: Path) -> None:
    """The settings are covered, too: a threshold changed by hand, the file still well formed."""
    good = path.read_bytes()
    assert good.count(b"0.05") == 1
    path.write_bytes(good.replace(b"0.05", b"0.50"))
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        load_checkpoint(path)


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
    for number, advice in ((99, "update protoad"), (1, "train it again")):
        save_file({"x": torch.ones(1)}, path, metadata={"header": json.dumps({"format": number})})
        with pytest.raises(CheckpointError, match=f"format {number}, this version reads {FORMAT}; {advice}"):
            load_checkpoint(path)


def test_missing_file_and_unwritable_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "checkpoint.safetensors", TENSORS, HEADER)


class _Bank(ShapedByData):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.empty(0))
        self.register_buffer("ids", torch.empty(0, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4))

    def fill(self, count: int) -> None:
        self.register_buffer("bank", torch.randn(count, 4))
        self.register_buffer("ids", torch.arange(count))


def test_buffers_shaped_by_data_find_room_and_others_keep_theirs() -> None:
    one, other = torch.nn.ModuleDict({"deep": _Bank()}), torch.nn.ModuleDict({"deep": _Bank()})
    one["deep"].fill(5)
    other["deep"].fill(2)  # another fit before
    other.load_state_dict(one.state_dict())
    assert torch.equal(other["deep"].bank, one["deep"].bank)
    assert torch.equal(other["deep"].ids, torch.arange(5))
    assert other["deep"].bank.data_ptr() != one["deep"].bank.data_ptr()
    other.load_state_dict(torch.nn.ModuleDict({"deep": _Bank()}).state_dict())
    assert other["deep"].bank.numel() == 0
    with pytest.raises(RuntimeError, match=r"size mismatch for deep\.mean"):
        other.load_state_dict({**one.state_dict(), "deep.mean": torch.zeros(5)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**one.state_dict(), "deep.more": torch.zeros(5)})
