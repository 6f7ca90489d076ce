"""Two processes train what one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_work
import pytest
import torch
from pirn.cli import main

from protoad.checkpoint import load_checkpoint
from protoad.data import write_dataset
from protoad.distributed import join

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, and one alone."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, distributed_work.__file__, str(folder)]
    ranks = [subprocess.Popen(command, env={**ENVIRONMENT, **place, "RANK": str(rank)}) for rank in range(2)]
    (folder / "alone").mkdir()
    try:
        alone = distributed_work.everything(None, folder / "alone")
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:  # one that waits for a lost peer would stay
        for rank in ranks:
            rank.kill()
    return [*(torch.load(folder / f"{rank}.pt") for rank in range(2)), alone]


@pytest.mark.parametrize("name", ["pirn", "pirn cosine", "pirn without exchange"])
def test_twenty_steps_end_where_those_of_one_process_do(found, name: str) -> None:
    """Batches of 3, 3, 3 and 1 of ten shots: two and one, and in the last step one and none."""
    one, two, alone = (each[name] for each in found)
    for parameter, expected in alone["parameters"].items():
        assert (one["parameters"][parameter] - expected).abs().max() < 1e-8
        assert torch.equal(one["parameters"][parameter], two["parameters"][parameter])
    assert one["history"] == two["history"]
    for figures, expected in zip(one["history"], alone["history"], strict=True):
        assert figures == pytest.approx(expected, abs=1e-9)
    assert alone["history"][-1]["loss"] < alone["history"][0]["loss"]


def test_every_gradient_is_that_of_the_whole_batch(found) -> None:
    one, two, alone = (each["gradients"] for each in found)
    for clipping in ("clipped at 1000000000.0", "clipped at 0.01"):
        assert len(alone[clipping]) == 7
        for mine, theirs, expected in zip(one[clipping], two[clipping], alone[clipping], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    for each in (one, two, alone):
        assert torch.equal(each["unused"], torch.ones(3, dtype=torch.float64))
        assert each["its gradient"] is None


def test_a_loss_that_is_no_number_in_one_process_stops_all(found) -> None:
    assert {each["divergence"] for each in found} == {"loss is nan in epoch 0; try a smaller learning rate"}


def test_the_first_keeps_the_snapshot_and_all_go_on_from_it(found) -> None:
    one, two, alone = (each["resumed"] for each in found)
    for each in (one, two, alone):
        assert torch.equal(each["resumed"][0], each["whole"][0])
        assert each["resumed"][1] == each["whole"][1]
    torch.testing.assert_close(one["whole"][0], alone["whole"][0])
    assert one["kept"]
    assert not two["kept"]


def test_collectives(found) -> None:
    one, two, alone = (each["collectives"] for each in found)
    assert one["share"].tolist() == [0, 1, 2]
    assert two["share"].tolist() == [3, 4]
    assert alone["share"].tolist() == [0, 1, 2, 3, 4]
    for each in (one, two):
        assert torch.equal(each["gathered"], alone["gathered"])
        assert torch.equal(each["uneven"], torch.full((2, 3), True))
        assert each["total"] == 10
        assert each["first"] == {"rank": 0}
        assert each["figures"] == {"a": 2.0}
        assert each["even"] == pytest.approx({"a": 5 / 3, "b": 4.0})
        assert each["size"] == 2
    assert alone["size"] == 1


def test_an_encoder_takes_the_statistics_of_all_shots(found) -> None:
    one, two, alone = (each["statistics"] for each in found)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    torch.testing.assert_close(one["shift"], alone["shift"])
    # axes of nearly equal variance turn into each other by rounding; what they span does not
    torch.testing.assert_close(*(each["whiten"] @ each["whiten"].mT for each in (one, alone)), rtol=1e-3, atol=1e-2)


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join() as group:
        assert group is None


def test_torchrun_trains_starts_again_after_a_kill_and_says_once_what_is_wrong(tmp_path: Path) -> None:
    for name in ("good", "broken"):
        root = tmp_path / name
        write_dataset(root, parts=("cookie",), train=3, validation=0, test_good=1, test_per_defect=1, seed=0, size=96)
    cut = tmp_path / "broken" / "cookie" / "train" / "good" / "xyz" / "002.tiff"  # in the share of the second
    cut.write_bytes(cut.read_bytes()[:500])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [*torchrun, distributed_work.__file__, str(tmp_path)]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert run.returncode != 0
    errors = [line for line in run.stderr.splitlines() if line.startswith("pirn: ")]
    assert len(errors) == 1, run.stderr
    assert "002.tiff" in errors[0]
    assert not (tmp_path / "out").exists()
    lines = run.stdout.splitlines()
    assert [line.rsplit("/")[-3] for line in lines] == ["whole", "whole", "cut"]
    assert ["kept" in line for line in lines] == [False, True, False]
    (whole,), (cut,) = ((tmp_path / out / "cookie").iterdir() for out in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()
    assert main([*distributed_work.TRAIN, "--root", str(tmp_path / "good"), "--out", str(tmp_path / "alone")]) == 0
    alone = load_checkpoint(tmp_path / "alone" / "cookie" / "checkpoint.safetensors").tensors
    for name, tensor in load_checkpoint(whole).tensors.items():
        if "reconstructor" in name or "encoder" in name:
            torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-4)
