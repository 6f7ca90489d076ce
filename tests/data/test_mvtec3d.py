"""A small tree in MVTec 3D-AD's layout, and everything that can be wrong with one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from protoad.data import (
    MVTec3D,
    Sample,
    list_categories,
    load_sample,
    read_xyz,
    write_mask,
    write_rgb,
    write_xyz,
)
from protoad.errors import DataError

pytest.importorskip("PIL")
pytest.importorskip("tifffile")


def _part(folder: Path, stem: str, *, size: tuple[int, int] = (12, 16), mask: str | None = None) -> None:
    rng = np.random.default_rng(int(stem))
    write_rgb(folder / "rgb" / f"{stem}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    write_xyz(folder / "xyz" / f"{stem}.tiff", rng.normal(0.5, 0.1, (*size, 3)).astype(np.float32))
    if mask is not None:
        outline = np.zeros(size, dtype=bool)
        outline[3:5, 4:8] = folder.name != "good"
        write_mask(folder / mask / f"{stem}.png", outline)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for stem in ("002", "000", "001"):
        _part(tmp_path / "nut" / "train" / "good", stem)
    for stem in ("003", "004"):
        _part(tmp_path / "nut" / "test" / "good", stem, mask="gt")
    _part(tmp_path / "nut" / "test" / "bump", "000", mask="gt")
    _part(tmp_path / "bolt" / "test" / "bump", "000", mask="ground_truth")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_names_labels_and_defects_are_sorted_and_paired(root: Path) -> None:
    test = MVTec3D(root, "nut", "test")
    assert isinstance(test[0], Sample)
    assert test.names == ["test/bump/000", "test/good/003", "test/good/004"]
    assert test.labels == [1, 0, 0]
    assert test.defects == ["bump", "good", "good"]
    assert MVTec3D(root, "nut", "train").names == [f"train/good/{i:03d}" for i in range(3)]
    for i, sample in enumerate(test):
        assert (sample.name, sample.label, sample.defect) == (test.names[i], test.labels[i], test.defects[i])
        rng = np.random.default_rng(int(sample.name[-3:]))
        np.testing.assert_array_equal(sample.rgb, rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        assert sample.mask.sum() == (8 if sample.label else 0)
    assert [sample.name for sample in test[1:]] == test.names[1:]
    assert test[-1].name == "test/good/004"
    with pytest.raises(IndexError):
        test[3]


def test_parts_are_read_lazily(root: Path) -> None:
    damaged = root / "nut" / "test" / "bump" / "rgb" / "000.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    test = MVTec3D(root, "nut", "test")
    assert test.labels == [1, 0, 0]
    assert test[1].label == 0
    with pytest.raises(DataError, match=r"bump/rgb/000\.png: not a readable image"):
        test[0]


def test_ground_truth_may_be_spelled_out_and_good_parts_go_without(root: Path) -> None:
    assert MVTec3D(root, "bolt", "test")[0].mask.sum() == 8
    assert not MVTec3D(root, "nut", "train")[0].mask.any()


def test_categories(root: Path) -> None:
    assert list_categories(root) == ["bolt", "nut"]
    with pytest.raises(DataError, match=r"no category 'nuts'; found: bolt, nut"):
        MVTec3D(root, "nuts", "test")
    with pytest.raises(DataError, match=r"nut: is a category itself; give the folder above"):
        list_categories(root / "nut")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        list_categories(root / "nowhere")
    with pytest.raises(DataError, match="unknown split 'valid', expected one of train, validation, test"):
        MVTec3D(root, "nut", "valid")
    with pytest.raises(DataError, match=r"nut/validation: no such folder"):
        MVTec3D(root, "nut", "validation")


def test_empty_split(root: Path) -> None:
    (root / "nut" / "validation").mkdir()
    with pytest.raises(DataError, match=r"nut/validation: holds no parts"):
        MVTec3D(root, "nut", "validation")
    for kind in ("rgb", "xyz"):
        (root / "nut" / "validation" / "good" / kind).mkdir(parents=True)
    with pytest.raises(DataError, match=r"nut/validation: holds no parts"):
        MVTec3D(root, "nut", "validation")
    (root / "nut" / "validation" / "good" / "xyz").rmdir()
    with pytest.raises(DataError, match=r"good/xyz: no such folder"):
        MVTec3D(root, "nut", "validation")


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("xyz/000.tiff", r"bump/rgb/000\.png: no point cloud of the same name in .*bump/xyz"),
        ("rgb/000.png", r"bump/xyz/000\.tiff: no colour image of the same name in .*bump/rgb"),
        ("gt/000.png", r"bump/rgb/000\.png: no mask of the same name in .*bump/gt"),
    ],
)
def test_orphans(root: Path, remove: str, message: str) -> None:
    (root / "nut" / "test" / "bump" / remove).unlink()
    with pytest.raises(DataError, match=message):
        MVTec3D(root, "nut", "test")


def test_mask_without_part_folder_without_masks_and_twins(root: Path) -> None:
    bump = root / "nut" / "test" / "bump"
    write_mask(bump / "gt" / "009.png", np.ones((12, 16), dtype=bool))
    with pytest.raises(DataError, match=r"gt/009\.png: no colour image of the same name"):
        MVTec3D(root, "nut", "test")
    (bump / "gt").rename(bump / "masks")
    with pytest.raises(DataError, match=r"bump: has neither gt/ nor ground_truth/"):
        MVTec3D(root, "nut", "test")
    good = root / "nut" / "train" / "good" / "rgb"
    (good / "001.jpg").write_bytes((good / "001.png").read_bytes())
    with pytest.raises(DataError, match=r"001\.png: 001\.jpg has the same name"):
        MVTec3D(root, "nut", "train")


def test_hidden_and_foreign_files_are_not_parts(root: Path) -> None:
    good = root / "nut" / "train" / "good"
    (good / "rgb" / "._000.png").write_bytes(b"resource fork")
    (good / "rgb" / "Thumbs.db").write_bytes(b"cache")
    (root / "nut" / "train" / ".cache").mkdir()
    assert len(MVTec3D(root, "nut", "train")) == 3


def test_sizes_that_differ(root: Path) -> None:
    bump = root / "nut" / "test" / "bump"
    write_mask(bump / "gt" / "000.png", np.ones((12, 17), dtype=bool))
    with pytest.raises(DataError, match=r"gt/000\.png: is 17 x 12 pixels, but .*rgb/000\.png is 16 x 12"):
        MVTec3D(root, "nut", "test")[0]
    write_xyz(bump / "xyz" / "000.tiff", np.ones((16, 12, 3), np.float32))
    with pytest.raises(DataError, match=r"xyz/000\.tiff: is 12 x 16 pixels, but"):
        MVTec3D(root, "nut", "test")[0]


def test_a_good_part_with_a_defect_is_a_contradiction(root: Path) -> None:
    write_mask(root / "nut" / "test" / "good" / "gt" / "003.png", np.ones((12, 16), dtype=bool))
    with pytest.raises(DataError, match=r"good/gt/003\.png: outlines a defect"):
        MVTec3D(root, "nut", "test")[1]


def test_a_part_outside_any_data_set(root: Path) -> None:
    bump = root / "nut" / "test" / "bump"
    bare = load_sample(bump / "rgb" / "000.png", bump / "xyz" / "000.tiff")
    assert (bare.name, bare.label, bare.defect, bare.mask.any()) == ("000", 0, "good", False)
    known = load_sample(bump / "rgb" / "000.png", bump / "xyz" / "000.tiff", bump / "gt" / "000.png")
    assert (known.label, known.defect, known.mask.sum()) == (1, "defect", 8)
    np.testing.assert_array_equal(known.xyz, read_xyz(bump / "xyz" / "000.tiff"))


def test_a_sample_holds_one_pixel_grid() -> None:
    rgb, xyz = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.float32)
    with pytest.raises(DataError, match=r"some/part: mask is bool \(5, 4\), expected bool \(4, 5\)"):
        Sample(rgb, xyz, np.zeros((5, 4), bool), 0, "good", "some/part")
    with pytest.raises(DataError, match=r"some/part: xyz is float64"):
        Sample(rgb, xyz.astype(float), np.zeros((4, 5), bool), 0, "good", "some/part")


def test_real_category() -> None:
    data = os.environ.get("PROTOAD_DATA")
    if not data:
        pytest.skip("set PROTOAD_DATA to a folder with mvtec3d/ to read real frames")
    test = MVTec3D(Path(data) / "mvtec3d", "cable_gland", "test")
    assert set(test.defects) == {"bent", "cut", "good", "hole", "thread"}
    for sample in test:
        assert sample.rgb.shape == (400, 400, 3)
        assert sample.mask.any() == bool(sample.label)
        points = sample.xyz[np.isfinite(sample.xyz[..., 0])]
        assert 0.5 < len(points) / 160_000 < 0.7
        assert 0.5 < points[:, 2].min() < points[:, 2].max() < 0.75  # metres along the view: axes in order
