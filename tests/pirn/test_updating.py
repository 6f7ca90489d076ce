"""Further good parts for a trained detector."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pirn import PIRNDetector
from pirn.cli import main

from protoad.checkpoint import load_checkpoint
from protoad.data import read_rgb, write_rgb


@pytest.fixture
def folder(calibrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(calibrated, tmp_path / "trained")) / "cookie"


def _update(folder: Path, root: Path, *more: str) -> int:
    added = [] if "--add" in more else ["--add", "all"]
    return main(["update", "--checkpoint", str(folder), "--root", str(root), "--more-epochs", "1", *added, *more])


def _new(folder: Path, root: Path) -> str:
    """The only good part of the training split that is no shot."""
    shots = PIRNDetector.load(folder).shots
    (name,) = {f"train/good/{path.stem}" for path in (root / "cookie/train/good/rgb").iterdir()} - set(shots)
    return name


def test_new_parts_become_shots_and_the_rest_calibrates(cookies: Path, folder: Path, capsys) -> None:
    before, new = PIRNDetector.load(folder), _new(folder, cookies)
    old_bytes = load_checkpoint(folder / "checkpoint.safetensors")
    assert _update(folder, cookies) == 0
    said = capsys.readouterr().out
    after = PIRNDetector.load(folder)
    assert after.shots == [*before.shots, new]
    assert len(after.model.history) == len(before.model.history) + 1
    assert {len(c.scores) for c in after.calibrations.values()} == {4}  # five before
    assert not torch.equal(after.model.prototypes["rgb"], before.model.prototypes["rgb"])
    for modality, encoder in after.extractor.encoders.items():
        assert encoder.fingerprint() == before.extractor.encoders[modality].fingerprint()
    kept = load_checkpoint(folder / "previous.checkpoint.safetensors")
    assert kept.header == old_bytes.header
    assert all(torch.equal(kept.tensors[name], value) for name, value in old_bytes.tensors.items())
    assert "cookie: 1 good parts added, 4 shots now" in said
    moved = float(said.split("prototypes moved by ")[1].split("%")[0])
    assert 0 < moved < 5
    threshold = after.calibrations["rgb+normals"].threshold
    was = before.calibrations["rgb+normals"].threshold
    assert f"  rgb+normals: rejected above {threshold:.2f} by 4 parts, was {was:.2f} by 5 parts" in said


def test_what_looks_anomalous_is_refused_unless_forced(cookies: Path, folder: Path, tmp_path: Path, capsys) -> None:
    root, new = Path(shutil.copytree(cookies, tmp_path / "data")), _new(folder, cookies)
    picture = root / "cookie" / "train" / "good" / "rgb" / f"{new[-3:]}.png"
    stained = read_rgb(picture)
    stained[40:56, 40:56] = np.array([20, 90, 220])
    write_rgb(picture, stained)
    before = (folder / "checkpoint.safetensors").read_bytes()
    assert _update(folder, root, "--add", new) == 2
    assert f"cookie: {new} would be rejected as they are" in capsys.readouterr().err
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert not (folder / "previous.checkpoint.safetensors").exists()
    assert _update(folder, root, "--add", new, "--force") == 0
    assert f"{new}: taken although it looks anomalous" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (0, "no good part would be left to calibrate with"),
        (3, "3 held-out good parts can promise no false reject rate"),
    ],
)
def test_too_few_parts_left_are_noticed_before_the_work(
    cookies: Path, folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, validation: int, message: str
) -> None:
    root = Path(shutil.copytree(cookies, tmp_path / "data"))
    for path in (root / "cookie" / "validation").rglob("*.*"):
        if int(path.stem) >= validation:
            path.unlink()
    if not validation:
        shutil.rmtree(root / "cookie" / "validation")
    monkeypatch.setattr("pirn.model.PIRN.fine_tune", lambda *_: pytest.fail("it trained"))
    before = (folder / "checkpoint.safetensors").read_bytes()
    assert _update(folder, root) == 2
    assert message in capsys.readouterr().err
    assert (folder / "checkpoint.safetensors").read_bytes() == before


def test_what_cannot_be_added_is_named(cookies: Path, folder: Path, tmp_path: Path, capsys) -> None:
    shot = PIRNDetector.load(folder).shots[0]
    for extra, message in (
        (["--add", "train/good/999"], "has no good part train/good/999 in the training split of cookie; found train/"),
        (["--add", shot], "all these parts of cookie are shots already"),
        (["--more-epochs", "0"], "epochs: expected at least 1, got 0"),
    ):
        assert _update(folder, cookies, *extra) == 2
        assert message in capsys.readouterr().err
    pirn = PIRNDetector.load(folder)
    pirn.calibrations = {}
    pirn.save(folder)
    assert _update(folder, cookies) == 2
    assert "cookie: not calibrated on parts held out; run pirn calibrate first" in capsys.readouterr().err
    assert not (folder / "previous.checkpoint.safetensors").exists()
