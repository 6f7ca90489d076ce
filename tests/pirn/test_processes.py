"""Devices, and many categories as one command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import pool_work
import pytest
import torch
from pirn.categories import fail_after
from pirn.cli import main
from pirn.detector import PIRNDetector
from pirn.processes import choose_device, count_workers, deterministic, run_each

from protoad.data import write_dataset
from protoad.errors import ConfigError, DataError, ProtoadError, TrainingError

FAST = ["--shots", "3", "--image-size", "96", "--epochs", "2", "--num-prototypes", "4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(
        root, parts=("cookie", "tile"), train=3, validation=0, test_good=2, test_per_defect=1, seed=0, size=96
    )
    return root


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert main(_train(root, out, "--category", "tile")) == 0
    return out


def _train(root: Path, out: Path, *extra: str) -> list[str]:
    return ["train", "--root", str(root), "--category", "all", "--out", str(out), *FAST, *extra]


def test_a_failing_category_does_not_lose_the_others(root: Path, trained: Path, tmp_path: Path, capsys) -> None:
    broken, out = shutil.copytree(root, tmp_path / "copy"), tmp_path / "out"
    part = broken / "cookie" / "train" / "good" / "rgb" / "001.png"
    content = part.read_bytes()
    part.write_bytes(content[:100])
    assert main(_train(broken, out, "--jobs", "2")) == 2
    said = capsys.readouterr()
    assert said.err.startswith("pirn: 1 of 2 categories failed")
    assert re.search(r"^  cookie: .*001\.png", said.err, re.MULTILINE)
    rows = [line.split() for line in said.out.splitlines()[-3:]]
    assert rows[0] == ["category", "shots", "epochs", "loss", "leak", "time"]
    assert rows[1] == ["cookie", "-", "-", "-", "-", "failed"]
    assert rows[2][:3] == ["tile", "3", "2"]
    checkpoint = out / "tile" / "checkpoint.safetensors"
    assert checkpoint.read_bytes() == (trained / "tile" / "checkpoint.safetensors").read_bytes()

    part.write_bytes(content)
    assert main(_train(broken, out)) == 0
    said = capsys.readouterr().out
    assert re.search(r"^tile: .*, kept -> ", said, re.MULTILINE)
    assert [line.split()[-1] for line in said.splitlines()[-2:]] == ["s", "kept"]

    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    evaluate = ["evaluate", "--checkpoint", str(out), "--root", str(root), "--json", str(tmp_path / "r.json")]
    assert main([*evaluate, "--no-yardsticks"]) == 2
    assert json.loads((tmp_path / "r.json").read_text())["pirn"]["categories"].keys() == {"cookie"}
    assert re.search(r"1 of 2 categories failed.*\n  tile: ", capsys.readouterr().err)


@pytest.mark.parametrize("change", [["--epochs", "3"], ["--seed", "5"], ["--shots", "2"], ["--option", "unit=mm"]])
def test_another_training_is_never_taken_for_this_one(
    root: Path, trained: Path, tmp_path: Path, capsys, change: list[str]
) -> None:
    out = shutil.copytree(trained, tmp_path / "out")
    checkpoint = out / "tile" / "checkpoint.safetensors"
    before, only = checkpoint.read_bytes(), ["--category", "tile"]
    assert main(_train(root, out, *only, *change)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pirn: {checkpoint}: comes of other settings (")
    assert change[0].strip("-").replace("option", "source") in said
    assert "--retrain" in said
    assert checkpoint.read_bytes() == before
    if change[0] == "--epochs":
        assert main(_train(root, out, *only, *change, "--retrain")) == 0
        assert "3 epochs" in capsys.readouterr().out
        assert checkpoint.read_bytes() != before


def test_every_command_moves_the_detector_to_its_device(root: Path, tmp_path: Path, monkeypatch) -> None:
    moved, to = [], PIRNDetector.to

    def spy(self: PIRNDetector, device: torch.device) -> PIRNDetector:
        moved.append(device)
        return to(self, device)

    monkeypatch.setattr(PIRNDetector, "to", spy)
    monkeypatch.setattr("pirn.cli.choose_device", lambda name: torch.device(name, 0))
    device = ["--device", "cpu"]
    assert main(_train(root, tmp_path, "--category", "tile", "--shots", "2", "--epochs", "1", *device)) == 0
    where = ["--checkpoint", str(tmp_path), "--root", str(root)]
    assert main(["evaluate", *where, "--no-yardsticks", *device]) == 0
    assert main(["calibrate", *where, "--force", *device]) == 0
    assert main(["detect", *where, "--out", str(tmp_path / "out"), *device]) == 0
    assert moved == [torch.device("cpu", 0)] * 4


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")
    for name in ("tpu", "meta", "cuda:x"):
        with pytest.raises(ConfigError, match="expected cpu, cuda or cuda:N"):
            choose_device(name)
    with pytest.raises(ConfigError, match="asked for cuda:2, found 2"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(None) == torch.device("cuda")
    assert not chosen
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="asked for cuda:2, found 2"):
        choose_device("cuda")


def test_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    found = [count_workers(None, cpu, 5), count_workers(None, gpu, 5), count_workers(None, torch.device("cuda:1"), 5)]
    assert found == [None, 3, None]
    assert [count_workers(jobs, cpu, 3) for jobs in (1, 2, 9)] == [None, 2, 3]
    with pytest.raises(ConfigError, match="jobs"):
        count_workers(0, cpu, 3)


def test_a_pool_gives_each_process_a_gpu_and_outlives_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    with deterministic(True):
        found = list(run_each(pool_work.look, [1, 3, 2, 4], workers=1, device=torch.device("cuda")))
    assert found[0] == (1, "6", 1, True)
    assert isinstance(found[1], DataError)
    assert found[2] == (2, "6", 1, True)
    assert isinstance(found[3], TrainingError)
    assert "process died" in str(found[3])
    assert not torch.are_deterministic_algorithms_enabled()
    assert [type(each) for each in run_each(pool_work.look, [1, 3], workers=None, device=torch.device("cpu"))] == [
        tuple,
        DataError,
    ]


def test_deterministic_reaches_torch_and_changes_nothing_on_a_cpu(
    root: Path, trained: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen, to = [], PIRNDetector.to
    monkeypatch.setattr(
        PIRNDetector,
        "to",
        lambda self, device: seen.append(torch.are_deterministic_algorithms_enabled()) or to(self, device),
    )
    assert main(_train(root, tmp_path, "--category", "tile", "--deterministic")) == 0
    assert seen == [True]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    plain, asked = (out / "tile" / "checkpoint.safetensors" for out in (trained, tmp_path))
    assert plain.read_bytes() == asked.read_bytes()


def test_only_train_runs_under_torchrun(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    @contextlib.contextmanager
    def joined(device: torch.device):
        yield object()

    monkeypatch.setattr("pirn.cli.join", joined)
    assert main(["evaluate", "--checkpoint", str(tmp_path), "--root", str(tmp_path)]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_no_category_at_all(tmp_path: Path, capsys) -> None:
    assert main(_train(tmp_path, tmp_path / "out")) == 2
    assert "holds no category" in capsys.readouterr().err


def test_a_single_category_ends_in_its_own_error() -> None:
    with pytest.raises(DataError, match="three"):
        fail_after({"tile": DataError("three")})
    with pytest.raises(ProtoadError, match="2 of 3"):
        fail_after({"a": DataError("x"), "b": 1, "c": DataError("y")})
    fail_after({"a": 1})
