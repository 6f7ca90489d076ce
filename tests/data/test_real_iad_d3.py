"""Real-IAD D3, in the layout of the download and in those of its authors' code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
import tifffile
from PIL import Image

from protoad.data import DataWarning, RealIADD3, check_dataset, write_mask
from protoad.errors import DataError


def test_files_are_matched_by_name_not_by_place(tmp_path: Path) -> None:
    """Its authors zip sorted lists: one file missing shifts all that follow, and nobody notices."""
    root = miniatures.real_iad_folders(tmp_path)
    good = root / "knob-cap" / "train" / "GOOD"
    shutil.rmtree(good / "rgb" / "S0000")
    (good / "xyz" / "S0002.tiff").unlink()
    with pytest.raises(DataError, match=r"S0002/S0002_L05_RGB\.jpg: no point cloud of the same name in .*GOOD/xyz"):
        RealIADD3(root, "knob-cap", "train")
    problems = {Path(p.file).name: p.reason for p in check_dataset("real-iad-d3", root).problems}
    assert problems.keys() == {"S0002_L05_RGB.jpg", "S0000.tiff"}
    assert "no colour image of the same name" in problems["S0000.tiff"]
    found = RealIADD3(root, "knob-cap", "train", report=lambda path, reason: None)
    assert found.names == ["train/GOOD/S0001"]
    np.testing.assert_allclose(found[0].xyz, miniatures.frame(1)[1], equal_nan=True)


def test_one_image_of_many_lights(tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path)
    part = root / "knob-cap" / "train" / "GOOD" / "rgb" / "S0001"
    assert RealIADD3(root, "knob-cap", "train").files(1)["rgb"] == part / "S0001_L05_RGB.jpg"
    (part / "again_L05_RGB.JPG").write_bytes((part / "S0001_L05_RGB.jpg").read_bytes())
    with pytest.raises(DataError, match=r"rgb/S0001: holds 2 images named \*L05\*RGB\*\.jpg, expected one"):
        RealIADD3(root, "knob-cap", "train")


def test_nan_depth_is_no_point_whatever_x_and_y_say(tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path)
    raw = tifffile.imread(root / "knob-cap" / "test" / "AK" / "xyz" / "S0000.tiff")
    assert np.isfinite(raw[..., :2]).all()
    sample = RealIADD3(root, "knob-cap", "test")[0]
    assert sample.defect == "AK"
    np.testing.assert_array_equal(np.isnan(sample.xyz).all(axis=-1), np.isnan(raw[..., 2]))


def test_colour_goes_to_the_grid_of_the_cloud(tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path, good="good", flat=True)
    test = RealIADD3(root, "knob-cap", "test")
    sample = test[test.defects.index("AK")]
    np.testing.assert_array_equal(sample.rgb, miniatures.frame(20)[0])  # written at twice the size
    np.testing.assert_array_equal(sample.mask, miniatures.outline())


def test_normals_from_photometric_stereo(tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path, good="good", flat=True)
    ps = root / "knob-cap" / "train" / "good" / "ps"
    coded = np.full((24, 32, 3), (128, 128, 255), dtype=np.uint8)  # at a size of its own
    coded[:12] = (218, 128, 218)  # half to the right
    (ps / "S0000.jpg").unlink()
    Image.fromarray(coded).save(ps / "S0000.png")
    sample = RealIADD3(root, "knob-cap", "train", normals="ps")[0]
    assert sample.normals is not None
    assert sample.normals.shape == sample.xyz.shape == (12, 16, 3)
    half = 0.5**0.5
    np.testing.assert_allclose(sample.normals[2, 4], (half, 0, -half), atol=0.02)
    np.testing.assert_allclose(sample.normals[9, 4], (0, 0, -1), atol=0.02)
    assert RealIADD3(root, "knob-cap", "train")[0].normals is None
    shutil.rmtree(ps)
    assert len(RealIADD3(root, "knob-cap", "train")) == 3  # not needed then
    with pytest.raises(DataError, match=r"good/ps: no such folder"):
        RealIADD3(root, "knob-cap", "train", normals="ps")


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path, good="good", flat=True)
    miniatures.write_image(root / "knob-cap" / "train" / "good" / "rgb" / "S0000.png", np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(DataError, match=r"xyz/S0000\.tiff: is 16 x 12 pixels, but .*S0000\.png is 24 x 24; frames"):
        RealIADD3(root, "knob-cap", "train")[0]


@pytest.mark.parametrize(
    ("folder", "asked"),
    [
        ("crimp_st_cable_mount_box", "crimp_s_t_cable_mount_box"),
        ("knob-cap", "knob_cap"),
        ("knob-cap", "Knob Cap"),
    ],
)
def test_other_spellings_of_a_category(folder: str, asked: str, tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path, folder)
    assert RealIADD3(root, asked, "train").category == folder


@pytest.mark.parametrize(("folder", "asked"), [("knob-cap", "knob_zap"), ("purple-clay-pot", "purple_clip_pot")])
def test_a_guess_is_told(folder: str, asked: str, tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path, folder)
    with pytest.warns(DataWarning, match=f"takes '{folder}' for '{asked}'"):
        assert RealIADD3(root, asked, "train").category == folder


PUBLISHED = (
    "audio_jack_socket common_mode_filter connector_housing-female crimp_st_cable_mount_box dc_power_connector "
    "fork_crimp_terminal headphone_jack_socket miniature_lifting_motor purple-clay-pot power_jack ethernet_connector "
    "ferrite_bead fuse_holder humidity_sensor knob-cap lattice_block_plug lego_pin_connector_plate lego_propeller "
    "limit-switch telephone_spring_switch"
)


@pytest.mark.parametrize("missing", PUBLISHED.split())
def test_no_published_category_is_taken_for_another(missing: str, tmp_path: Path) -> None:
    for other in set(PUBLISHED.split()) - {missing}:
        (tmp_path / other / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=f"has no category '{missing}'"):
        RealIADD3(tmp_path, missing, "train")


def _rewrite(root: Path, change: dict[str, object], split: str = "test", index: int = 0) -> None:
    path = root / "realiad_d3_jsons" / "knob_cap.json"
    content = json.loads(path.read_text())
    content[split][index].update(change)
    path.write_text(json.dumps(content))


def test_lists(tmp_path: Path) -> None:
    root = miniatures.real_iad_lists(tmp_path)
    assert RealIADD3(root, "knob-cap", "validation").labels == [0]
    test = RealIADD3(root, "knob-cap", "test", normals="ps")
    assert test.defects == ["HS", "HS", "good"]
    assert test.names[0] == "test/HS/rgb/S0030/S0030_L05_RGB"
    assert test[0].normals is not None
    np.testing.assert_allclose(test[0].xyz, miniatures.frame(30)[1], equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"xyz_path": "OK/xyz/gone.tiff"},
            r"OK/xyz/gone\.tiff: no such file, though .*knob_cap\.json lists it in test",
        ),
        ({"xyz_path": None}, r"knob_cap\.json: an entry of test lacks xyz_path"),
        ({"xyz_path": 7}, r"knob_cap\.json: an entry of test lacks xyz_path"),
        ({"anomaly_class": ""}, r"knob_cap\.json: an entry of test lacks anomaly_class"),
        ({"anomaly_class": "AK"}, r"knob_cap\.json: an entry of test lacks mask_path"),
        (
            {"xyz_path": "/etc/passwd"},
            r"knob_cap\.json: lists /etc/passwd, which leaves .*knob_cap; expected",
        ),
        ({"xyz_path": "../../secret.tiff"}, r"knob_cap\.json: lists \.\./\.\./secret\.tiff, which leaves"),
        ({"xyz_path": "C:\\secret.tiff"}, r"which leaves"),
        ({"xyz_path": "."}, r"which leaves"),
    ],
)
def test_bad_entries_of_a_list(change: dict[str, object], message: str, tmp_path: Path) -> None:
    root = miniatures.real_iad_lists(tmp_path)
    _rewrite(root, change)
    with pytest.raises(DataError, match=message):
        RealIADD3(root, "knob_cap", "test")
    assert len(RealIADD3(root, "knob_cap", "test", report=lambda path, reason: None)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"test": 3}', '{"test": [3]}', "[" * 100_000, "\x00"])
def test_bad_lists(text: str, tmp_path: Path) -> None:
    root = miniatures.real_iad_lists(tmp_path)
    (root / "realiad_d3_jsons" / "knob_cap.json").write_text(text)
    with pytest.raises(DataError, match=r"knob_cap\.json: "):
        RealIADD3(root, "knob_cap", "test")
    findings = check_dataset("real-iad-d3", root)
    assert findings.splits == []
    assert all("knob_cap.json" in problem.file for problem in findings.problems)


def test_archives_not_unpacked(tmp_path: Path) -> None:
    root = miniatures.real_iad_lists(tmp_path)
    shutil.rmtree(root / "realiad_d3_raw" / "knob_cap")
    with pytest.raises(DataError, match=r"realiad_d3_raw/knob_cap: no such folder; download and unpack it"):
        RealIADD3(root, "knob_cap", "test")
    (root / "realiad_d3_raw" / "knob_cap.zip").touch()
    with pytest.raises(DataError, match=r"knob_cap: no such folder; unpack knob_cap\.zip beside it"):
        RealIADD3(root, "knob_cap", "test")


def test_masks_of_good_parts_must_be_empty(tmp_path: Path) -> None:
    root = miniatures.real_iad_folders(tmp_path)
    write_mask(root / "knob-cap" / "test" / "GOOD" / "gt" / "rgb" / "S0000.png", np.ones((24, 32), dtype=bool))
    test = RealIADD3(root, "knob-cap", "test")
    with pytest.raises(DataError, match=r"gt/rgb/S0000\.png: outlines a defect"):
        test[test.defects.index("good")]
