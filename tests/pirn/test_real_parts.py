"""The commands on real sensor frames; skipped where the research data are not at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pirn.cli import main

from protoad.report import read_jsonl

DATA, WEIGHTS = os.environ.get("PROTOAD_DATA"), os.environ.get("PROTOAD_WEIGHTS")
pytestmark = pytest.mark.skipif(not DATA, reason="set PROTOAD_DATA to a folder with mvtec3d/cable_gland")
MOBILENET = "timm:mobilenetv2_100,pad_type=same,mean=0.5,std=0.5"


def _encoder(name: str) -> list[str]:
    if name == "filter_bank":
        return ["--encoder", "filter_bank"]
    if not WEIGHTS:
        pytest.skip("set PROTOAD_WEIGHTS to a folder with MobileNetV2 weights")
    (weights,) = Path(WEIGHTS).glob("mobilenetv2_100*.safetensors")
    return ["--encoder", MOBILENET, "--weights", str(weights)]


@pytest.mark.parametrize("encoder", ["filter_bank", "mobilenet"])
def test_ten_shots_of_cable_gland(encoder: str, tmp_path: Path) -> None:
    root = Path(str(DATA)) / "mvtec3d"
    argv = ["--dataset", "mvtec3d", "--root", str(root), "--category", "cable_gland", "--shots", "10", "--seed", "0"]
    assert main(["train", *argv, *_encoder(encoder), "--epochs", "2", "--out", str(tmp_path)]) == 0
    results = tmp_path / "metrics.json"
    assert main(["evaluate", "--checkpoint", str(tmp_path), "--root", str(root), "--json", str(results)]) == 0
    for method in json.loads(results.read_text()).values():
        assert method["pixel_auroc"] > 0.85  # a bank on these features was seen at 0.94
    cut = root / "cable_gland" / "test" / "cut"
    rgb, xyz = sorted((cut / "rgb").glob("*.png"))[0], sorted((cut / "xyz").glob("*.tiff"))[0]
    argv = ["detect", "--checkpoint", str(tmp_path), "--rgb", str(rgb), "--xyz", str(xyz)]
    assert main([*argv, "--out", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "overlays" / f"{rgb.stem}.png").is_file()
    (found,) = read_jsonl(tmp_path / "found" / "scores.jsonl")
    assert found["score"] > 0
