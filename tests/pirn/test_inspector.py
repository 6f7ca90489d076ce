"""One part at a time, whatever there is of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pirn import Inspector
from pirn.cli import main
from pirn.conditions import Condition, condition_of, conditions
from pirn.config import PIRNConfig
from pirn.inspection import in_words, overlay, row
from pirn.inspector import _note

from protoad import DataError
from protoad.data import load_sample, lose_depth, prepare
from protoad.errors import CheckpointError, ConfigError

FAST = ["--image-size", "96", "--epochs", "2", "--num-prototypes", "4"]


@pytest.fixture(scope="module")
def inspector(calibrated: Path) -> Inspector:
    return Inspector.load(calibrated)


@pytest.fixture(scope="module")
def filler(cookies: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspector:
    out, data = tmp_path_factory.mktemp("filler"), ["--root", str(cookies)]
    train = ["train", *data, "--category", "cookie", "--shots", "3", *FAST, "--fill-holes", "--out", str(out)]
    assert main(train) == 0
    assert main(["calibrate", "--checkpoint", str(out), *data, "--false-reject-rate", "0.2"]) == 0
    return Inspector.load(out)


@pytest.fixture(scope="module")
def stained(cookies: Path):
    folder = cookies / "cookie" / "test" / "color"
    return load_sample(folder / "rgb" / "000.png", folder / "xyz" / "000.tiff", folder / "gt" / "000.png")


def test_score_verdict_maps_and_regions_agree(inspector: Inspector, stained) -> None:
    found = inspector(stained.rgb, stained.xyz, name="stained")
    pirn = inspector.pirn
    expected = pirn.detector(pirn.extractor([prepare(stained, 96)]))
    assert found.score == float(expected.score[0])
    assert found.verdict == pirn.calibrations["rgb+normals"](found.score)
    assert found.verdict.reject
    assert found.verdict.p_value == 1 / 6  # five good parts held out, and this one
    assert found.note == ""
    assert {m: heatmap.shape for m, heatmap in found.maps.items()} == dict.fromkeys(
        ("rgb", "normals", "fused"), (96, 96)
    )
    worst = found.regions[0]
    assert worst.peak == found.score
    assert stained.mask[worst.y : worst.y + worst.height, worst.x : worst.x + worst.width].any()
    assert found.peaks == {m: float(expected.maps[m].max()) for m in ("rgb", "normals")}
    assert found.seconds > 0
    again = row(inspector(stained.rgb, stained.xyz, name="stained"))
    assert again == row(found)
    assert in_words(found).startswith(f"stained: score {found.score:.2f}, p-value 0.167, REJECT, worst at x")


def test_positions_are_those_of_the_frame(inspector: Inspector, stained) -> None:
    """The part in a frame twice as wide with the part on its left: maps and boxes stay on the part."""
    doubled_rgb = np.concatenate([stained.rgb, stained.rgb[:, :, ::-1][:, ::-1]], axis=1)
    doubled_xyz = np.concatenate([stained.xyz, stained.xyz[:, ::-1] * np.float32([-1, 1, 1])], axis=1)
    found = inspector(doubled_rgb, doubled_xyz)
    heatmap = found.maps["fused"]
    assert heatmap.shape == (96, 192)
    assert overlay(inspector, found).shape[0] == 224  # enlarged to 448 across
    above = heatmap > inspector.pirn.calibrations[found.condition.name].threshold
    assert above.any()
    assert sum(region.area for region in found.regions) == pytest.approx(above.sum(), rel=0.1)
    for region in found.regions:
        assert heatmap[region.peak_y, region.peak_x] == pytest.approx(region.peak, rel=0.05)
        left, top = max(0, region.x - 2), max(0, region.y - 2)  # a pixel of the square is two of the frame
        above[top : region.y + region.height + 2, left : region.x + region.width + 2] = False
        assert 0 <= region.x < region.x + region.width <= 192
        assert 0 <= region.y < region.y + region.height <= 96
        assert 0 <= region.peak_x < 192
        assert 0 <= region.peak_y < 96
    assert not above.any()  # the boxes hold all of it


@pytest.mark.parametrize("missing", ["rgb", "xyz", "all of the depth"])
def test_what_is_missing_is_said_and_judged_by_good_parts_that_lacked_it_too(inspector, stained, missing) -> None:
    nothing = np.full_like(stained.xyz, 0.0)
    arguments = {
        "rgb": (None, stained.xyz),
        "xyz": (stained.rgb, None),
        "all of the depth": (stained.rgb, nothing),
    }[missing]
    found = inspector(*arguments)
    name, note = (
        ("normals", "no image") if missing == "rgb" else ("rgb, no depth", "no depth, judged by its image alone")
    )
    assert (found.condition.name, found.note) == (name, note)
    assert found.verdict == inspector.pirn.calibrations[name](found.score)
    assert set(found.maps) == {name.split(",")[0], "fused"}
    assert overlay(inspector, found).dtype == np.uint8
    if missing == "xyz":
        assert found.score == inspector(stained.rgb, nothing).score


@pytest.mark.parametrize(
    ("fills", "share", "name"),
    [
        (False, 0.1, "no depth"),
        (False, 0.5, "no depth"),
        (True, 0.3, "up to 40%"),
        (True, 0.5, "up to 60%"),
        (True, 0.9, "no depth"),
    ],
)
def test_holes_in_the_depth_are_no_alarm(
    inspector, filler, cookies: Path, fills: bool, share: float, name: str
) -> None:
    inspector = filler if fills else inspector
    good = cookies / "cookie" / "test" / "good"
    sample = load_sample(good / "rgb" / "000.png", good / "xyz" / "000.tiff")
    worse = lose_depth(sample, share, "specks", seed=5)
    found = inspector(worse.rgb, worse.xyz)
    assert name in found.condition.name
    assert found.lost == pytest.approx(share, abs=0.1)
    assert "of the part without depth" in found.note
    assert found.verdict is not None
    assert not found.verdict.reject
    if name == "no depth":  # what is left of the depth does not matter
        assert found.score == inspector(worse.rgb, None).score


def test_the_normals_that_a_data_set_brings_are_used(inspector: Inspector, stained) -> None:
    own = replace(stained, normals=np.full(stained.xyz.shape, (0, 0, -1), dtype=np.float32))
    pirn = inspector.pirn
    found = inspector.inspect_sample(own)
    assert found.score == float(pirn.detector(pirn.extractor([prepare(own, 96)])).score[0])
    assert found.score != inspector(own.rgb, own.xyz).score
    assert inspector.inspect_sample(stained).score == inspector(stained.rgb, stained.xyz).score


def test_only_what_was_wanted_is_missed() -> None:
    assert _note(("normals",), Condition(("normals",)), 0.0) == ""
    assert _note(("rgb", "normals"), Condition(("normals",), 0.4), 0.3) == "no image and 30% of the part without depth"


def test_the_threshold_lies_in_the_middle_of_the_scale(inspector: Inspector) -> None:
    pirn = inspector.pirn
    low, high = pirn.heatmap_range()
    assert (low + high) / 2 == pytest.approx(pirn.calibrations["rgb+normals"].threshold)
    assert low == pirn.detector.heatmap_range()[0]
    assert pirn.heatmap_range("rgb") == pirn.detector.heatmap_range("rgb")


def test_nothing_of_a_part_is_kept(inspector: Inspector, stained) -> None:
    before = inspector(stained.rgb, stained.xyz).score
    worse = lose_depth(stained, 0.5, "blobs", seed=0)
    inspector(worse.rgb, worse.xyz)
    inspector(stained.rgb, None)
    assert inspector(stained.rgb, stained.xyz).score == before
    assert not inspector.pirn.extractor.cache._memory


def test_bad_arrays_are_named(inspector: Inspector, stained) -> None:
    for arguments, message in (
        ((None, None), "plate: neither an image nor a point cloud"),
        ((stained.rgb[:50], stained.xyz), r"plate: xyz is float32 \(96, 96, 3\), expected float32 \(50, 96, 3\)"),
        ((stained.rgb / 255, None), "plate: rgb is float64"),
        (
            (None, np.full_like(stained.xyz, np.nan)),
            "plate: 100% of its depth is missing, and this detector has nothing",
        ),
    ):
        with pytest.raises(DataError, match=message):
            inspector(*arguments, name="plate")


def test_each_modality_has_its_conditions() -> None:
    both, colour, shape = (PIRNConfig(modality=m) for m in ("both", "rgb", "normals"))  # type: ignore[arg-type]
    filled = PIRNConfig(fill_holes=True)
    steps = [f"normals, up to {step}% of the depth lost" for step in (20, 40, 60)]
    assert [c.name for c in conditions(both)] == ["rgb+normals", "normals", *steps, "rgb, no depth"]
    assert [c.name for c in conditions(colour)] == ["rgb", "rgb, no depth"]
    assert [c.name for c in conditions(shape)] == ["normals", *steps]
    assert len(conditions(filled)) == 9
    for config in (both, colour, shape, filled):
        for lost in (0.0, 0.05, 0.2, 0.21, 0.6):
            assert condition_of(config, "a", colour=True, lost=lost) in conditions(config)
    for lost in (0.05, 0.61):
        assert condition_of(both, "a", colour=True, lost=lost).name == "rgb, no depth"
    assert condition_of(both, "a", colour=False, lost=0.05).name == steps[0]
    assert condition_of(filled, "a", colour=True, lost=0.21).name == "rgb+normals, up to 40% of the depth lost"
    assert condition_of(filled, "a", colour=True, lost=0.61).name == "rgb, no depth"
    assert condition_of(colour, "a", colour=True, lost=0.3).name == "rgb, no depth"
    for config, seen in ((both, False), (colour, False), (shape, True)):
        with pytest.raises(DataError, match="a: its image is missing" if config is colour else "a: 80% of its depth"):
            condition_of(config, "a", colour=seen, lost=0.8)


def test_which_checkpoint(calibrated: Path, tmp_path: Path) -> None:
    import shutil

    assert Inspector.load(calibrated / "cookie").pirn.category == "cookie"
    for name in ("a", "b"):
        shutil.copytree(calibrated / "cookie", tmp_path / name)
    with pytest.raises(ConfigError, match="holds a, b; choose one by its category"):
        Inspector.load(tmp_path)
    with pytest.raises(CheckpointError, match="has no 'c'; found: a, b"):
        Inspector.load(tmp_path, category="c")
