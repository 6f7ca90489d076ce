"""The two branches with encoders of their own, and what follows for rivals, caches, checkpoints and export."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pirn.cli import main
from pirn.config import PIRNConfig
from pirn.detector import PIRNDetector, build_extractor, yardsticks
from pirn.inspector import Inspector

from protoad.data import MVTec3D, prepare
from protoad.encoders import FilterBankEncoder
from protoad.errors import CheckpointError, ConfigError

FAST = ["--image-size", "96", "--epochs", "2", "--num-prototypes", "4"]
FPFH = ["--encoder-normals", "fpfh,radius=0.01", "--modality", "normals"]


def _train(root: Path, out: Path, *extra: str) -> int:
    argv = ["train", "--root", str(root), "--category", "cookie", "--shots", "3", "--out", str(out), *FAST, *extra]
    return main(argv)


@pytest.fixture(scope="module")
def trained(cookies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fpfh")
    assert _train(cookies, out, *FPFH) == 0
    return out / "cookie"


def test_rivals_take_branches_of_two_widths(cookies: Path) -> None:
    config = PIRNConfig(image_size=96, encoder_normals="fpfh")
    settings = {"size": 96, "points": True}
    shots = [prepare(sample, **settings) for sample in MVTec3D(cookies, "cookie", "train")]
    test = [prepare(sample, **settings) for sample in MVTec3D(cookies, "cookie", "test")]
    extractor = build_extractor(config).fit(shots)
    assert {m: e.dim for m, e in extractor.encoders.items()} == {"rgb": 256, "normals": 33}
    features = extractor(shots)
    labels = np.array(MVTec3D(cookies, "cookie", "test").labels)
    for score in ("whitened", "conditional", "cosine"):
        for rival in yardsticks(extractor, PIRNConfig(image_size=96, encoder_normals="fpfh", score=score)).values():
            said = rival.fit(features)(extractor(test))
            assert all(heatmap.isfinite().all() for heatmap in said.maps.values())
            assert said.maps.keys() == {"rgb", "normals", "fused"}
            assert said.score[labels == 1].mean() > said.score[labels == 0].mean()


def test_train_evaluate_calibrate_and_inspect_by_points(cookies: Path, trained: Path, tmp_path: Path) -> None:
    argv = ["evaluate", "--checkpoint", str(trained), "--root", str(cookies), "--json", str(tmp_path / "a.json")]
    assert main(argv) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found.keys() == {"pirn", "nearest_neighbour", "gaussian"}
    assert found["nearest_neighbour"]["categories"]["cookie"]["pixel_auroc"] > 0.7
    pirn = PIRNDetector.load(trained)
    assert pirn.config.encoder_normals == "fpfh,radius=0.01"
    assert pirn.extractor.encoders["normals"].radius == 0.01
    sample = MVTec3D(cookies, "cookie", "test")[0]
    by_file = pirn.detector(pirn.extractor([prepare(sample, 96, points=True)]))
    found = Inspector(pirn)(sample.rgb, sample.xyz)
    assert found.score == pytest.approx(float(by_file.score[0]), rel=1e-5)
    flat = sample.xyz.copy()
    flat[..., 2] = 0.5 + 0 * flat[..., 2]  # NaN stays NaN
    assert Inspector(pirn)(sample.rgb, flat).score != found.score
    copy = shutil.copytree(trained, tmp_path / "calibrated")
    argv = ["calibrate", "--checkpoint", str(copy), "--root", str(cookies), "--false-reject-rate", "0.2"]
    assert main(argv) == 0
    inspector = Inspector.load(copy)
    assert inspector(sample.rgb, sample.xyz).verdict is not None
    torn = sample.xyz.copy()
    torn[40:50] = 0
    judged = inspector(xyz=torn)
    assert judged.lost > 0.05
    assert judged.verdict is not None


def test_a_cache_serves_points_if_it_was_told_to_keep_them(
    cookies: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["prepare", "--root", str(cookies), "--size", "96", "--jobs", "1", "--out"]
    assert main([*argv, str(tmp_path / "bare")]) == 0
    assert main([*argv, str(tmp_path / "points"), "--points"]) == 0
    assert _train(tmp_path / "bare", tmp_path / "none", *FPFH) == 2
    assert "prepared without its points, at which an encoder is to look" in capsys.readouterr().err
    assert _train(tmp_path / "points", tmp_path / "run", *FPFH) == 0
    one, other = (PIRNDetector.load(folder) for folder in (trained, tmp_path / "run/cookie"))
    for name, value in one.detector.state_dict().items():
        assert torch.equal(value, other.detector.state_dict()[name])
    # and others take it as any cache
    assert _train(tmp_path / "points", tmp_path / "plain", "--modality", "rgb") == 0


def test_the_second_encoder_takes_the_grid_of_the_first() -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    tiny = "timm:vit_tiny_patch16_224,weights=random"
    extractor = build_extractor(PIRNConfig(encoder=tiny, encoder_normals="fpfh", image_size=96))
    assert extractor.grid == (6, 6)
    assert extractor.encoders["normals"].stride == 16
    apart = build_extractor(PIRNConfig(encoder=tiny, encoder_normals="filter_bank", image_size=96))
    assert isinstance(apart.encoders["normals"], FilterBankEncoder)
    assert apart.encoders["normals"].stride == 16
    shared = build_extractor(PIRNConfig(encoder=tiny, encoder_normals=tiny, image_size=96))
    assert shared.encoders["normals"] is shared.encoders["rgb"]
    alike = build_extractor(PIRNConfig(encoder_normals="filter_bank", image_size=96)).encoders
    for mine, theirs in zip(alike.values(), build_extractor(PIRNConfig(image_size=96)).encoders.values(), strict=True):
        assert mine.fingerprint() == theirs.fingerprint()


def test_what_does_not_go_together_is_refused(
    cookies: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(
        ConfigError, match=r"encoder_normals: .* 256 of the rgb branch and 33 of the normals branch; cho"
    ):
        PIRNDetector(PIRNConfig(image_size=96, encoder_normals="fpfh"), category="cookie")
    with pytest.raises(ConfigError, match="encoder: fpfh looks at points and sees no colours; give it as encoder_norm"):
        PIRNConfig(encoder="fpfh")
    assert PIRNConfig(encoder="fpfh", modality="normals").needs_points
    assert not PIRNConfig(encoder_normals="fpfh", modality="rgb").needs_points
    with pytest.raises(CheckpointError, match="sees no colours"):
        PIRNConfig.from_dict({"encoder": "fpfh"})
    assert main(["export", "--checkpoint", str(trained), "--out", str(tmp_path / "a.pt2")]) == 2
    assert "fpfh,radius=0.01 looks at points, and no graph holds that search" in capsys.readouterr().err
    assert not (tmp_path / "a.pt2").exists()
    assert _train(cookies, tmp_path / "out", "--encoder-normals", "fpfh") == 2
