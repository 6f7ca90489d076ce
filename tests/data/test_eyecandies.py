"""Eyecandies as published: numbers, lights, depth, masks."""

from __future__ import annotations

import os
from pathlib import Path

import miniatures
import numpy as np
import pytest
from PIL import Image

from protoad.data import Eyecandies, check_dataset, list_categories, normals_from_xyz, write_mask
from protoad.data.eyecandies import read_depth_range
from protoad.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.eyecandies(tmp_path)


def test_every_split_with_its_own_number_of_digits(root: Path) -> None:
    names = {split: Eyecandies(root, "GummyBear", split).names for split in ("train", "validation", "test")}
    assert names["train"] == ["train/data/000", "train/data/001", "train/data/002"]
    assert names["validation"] == ["val/data/00"]
    assert names["test"] == [f"test_public/data/{number}" for number in ("00", "25", "26", "27")]
    with pytest.raises(DataError, match=r"GummyBear/test_private/data: no such folder; the category lacks its test_pr"):
        Eyecandies(root, "GummyBear", "test_private")
    with pytest.raises(DataError, match=r"GummyBear: is a category itself"):
        list_categories(root / "GummyBear", "eyecandies")


def test_parts_are_sorted_by_number_not_by_text(root: Path) -> None:
    data = root / "GummyBear" / "train" / "data"
    for old, new in (("001_", "1000_"), ("002_", "999_")):
        for path in data.glob(f"{old}*"):
            path.rename(path.with_name(path.name.replace(old, new)))
    assert [name[11:] for name in Eyecandies(root, "GummyBear", "train").names] == ["000", "999", "1000"]


def test_labels_come_from_the_masks_and_an_empty_one_is_good(root: Path) -> None:
    test = Eyecandies(root, "GummyBear", "test")
    assert test.defects == ["good", "bumps", "dents+normals", "good"]
    assert test.labels == [0, 1, 1, 0]
    assert test.notes == ["1 parts that the data set calls anomalous have an empty mask and count as good"]
    assert f"GummyBear, test: {test.notes[0]}" in check_dataset("eyecandies", root).notes
    for kind in ("bumps", "dents", "colors", "normals"):
        (root / "GummyBear" / "test_public" / "data" / f"25_{kind}_mask.png").unlink()
    assert Eyecandies(root, "GummyBear", "test").defects[1] == "defect"


def test_depth_is_a_pinhole_camera_behind_the_decoded_numbers(root: Path) -> None:
    sample = Eyecandies(root, "GummyBear", "train")[1]
    levels = np.asarray(Image.open(root / "GummyBear" / "train" / "data" / "001_depth.png")).astype(float)
    z = 2.5 + levels / 65535 * 2
    np.testing.assert_allclose(sample.xyz[..., 2], z, rtol=1e-6)
    focal = 711.11 * 16 / 512
    for row, column in ((0, 0), (4, 7), (11, 15)):
        expected = np.array([(column - 7.5) / focal, (row - 5.5) / focal, 1]) * z[row, column]
        np.testing.assert_allclose(sample.xyz[row, column], expected, rtol=1e-5)
    levels[0, 0] = 0  # the nearest point of all, not a hole
    miniatures.write_depth(root / "GummyBear" / "train" / "data" / "001_depth.png", levels)
    assert Eyecandies(root, "GummyBear", "train")[1].xyz[0, 0, 2] == 2.5


def test_lights(root: Path) -> None:
    rgb = {light: Eyecandies(root, "GummyBear", "train", light=light)[0].rgb for light in (0, 4)}
    np.testing.assert_array_equal(Eyecandies(root, "GummyBear", "train")[0].rgb, rgb[4])
    assert (rgb[0] >= rgb[4]).all()
    assert (rgb[0] != rgb[4]).any()
    with pytest.raises(DataError, match=r"000_image_2\.png: missing; this part has light 0, 4; choose one of them"):
        Eyecandies(root, "GummyBear", "train", light=2)
    problems = check_dataset("eyecandies", root, light=2).problems
    assert len(problems) == 8  # every part of every split is told, not only the first


@pytest.mark.parametrize("item", ["depth.png", "info_depth.yaml", "image_4.png"])
def test_what_is_missing_is_named(root: Path, item: str) -> None:
    (root / "GummyBear" / "train" / "data" / f"001_{item}").unlink()
    with pytest.raises(DataError, match=rf"train/data/001_{item}: missing"):
        Eyecandies(root, "GummyBear", "train")


def test_only_what_is_needed_is_needed(root: Path) -> None:
    for path in (root / "GummyBear" / "train" / "data").iterdir():
        if not path.name.endswith(("image_4.png", "_depth.png", "info_depth.yaml")):
            path.unlink()
    assert len(list(Eyecandies(root, "GummyBear", "train"))) == 3
    with pytest.raises(DataError, match=r"000_normals\.png: missing"):
        Eyecandies(root, "GummyBear", "train", normals="given")


def test_given_normals_are_turned_to_camera_axes(root: Path) -> None:
    data = root / "GummyBear" / "train" / "data"
    coded = np.full((12, 16, 3), (128, 128, 255), dtype=np.uint8)  # towards the viewer
    coded[0, 0] = (128, 217, 217)  # half up
    coded[0, 1] = (128, 128, 128)  # nothing
    coded[0, 2] = (128, 128, 0)  # from behind: no camera sees it
    miniatures.write_image(data / "000_normals.png", coded)
    sample = Eyecandies(root, "GummyBear", "train", normals="given")[0]
    assert sample.normals is not None
    np.testing.assert_allclose(sample.normals[5, 5], (0, 0, -1), atol=0.01)
    np.testing.assert_allclose(sample.normals[0, 0], (0, -(0.5**0.5), -(0.5**0.5)), atol=0.01)
    assert (sample.normals[0, 1:3] == 0).all()
    facing = (sample.normals * sample.xyz).sum(axis=-1)
    assert ((facing < 0) | (sample.normals == 0).all(axis=-1)).all()
    assert Eyecandies(root, "GummyBear", "train")[0].normals is None


def test_a_defect_in_train_is_a_contradiction(root: Path) -> None:
    write_mask(root / "GummyBear" / "train" / "data" / "002_mask.png", miniatures.outline())
    with pytest.raises(DataError, match=r"002_mask\.png: outlines a defect"):
        Eyecandies(root, "GummyBear", "train")[2]


@pytest.mark.parametrize(
    "text", ["normalization:\n  max: 4.5\n  min: 2.5\n", "# a\nnormalization:\n\tmin: 2.5 # b\r\n\tmax: 4.5"]
)
def test_depth_range(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(text.encode())
    assert read_depth_range(tmp_path / "a.yaml") == (2.5, 4.5)


@pytest.mark.parametrize(
    "text",
    [
        "normalization:\n  max: 4.5\n",
        "normalization:\n  max: 2.5\n  min: 4.5\n",
        "normalization:\n  max: 4.5\n  min: 2.5\n  min: 2.5\n",
        "normalization:\n  max: 4.5\n  min: -2.5\n",
        "normalization:\n  max: inf\n  min: 2.5\n",
        "normalization:\n  max: .nan\n  min: 2.5\n",
        "normalization: {max: 4.5, min: 2.5}\n",
        "max: 4.5\nmin: 2.5\n",
        "normalization:\nmax: 4.5\nmin: 2.5\n",
        "a\n",
        "\n",
        "x" * 100_000,
    ],
)
def test_depth_range_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=r"a\.yaml: "):
        read_depth_range(tmp_path / "a.yaml")


def _real() -> Path:
    data = os.environ.get("PROTOAD_DATA")
    if not data:
        pytest.skip("set PROTOAD_DATA to a folder with eyecandies/CandyCane to read rendered frames")
    return Path(data) / "eyecandies"


def test_real_depth_and_real_normals_agree() -> None:
    """Axes, focal length and decoding at once: the data set brings normals of its own."""
    sample = Eyecandies(_real(), "CandyCane", "train", normals="given")[3]
    assert sample.normals is not None
    computed, valid = normals_from_xyz(sample.xyz)
    known = valid & (sample.normals != 0).any(axis=-1)
    assert known.mean() > 0.99
    angle = np.degrees(np.arccos(np.clip((computed * sample.normals).sum(axis=-1)[known], -1, 1)))
    assert np.median(angle) < 0.5


def test_real_labels() -> None:
    test = Eyecandies(_real(), "CandyCane", "test")
    assert test.labels == [0] * 6 + [1] * 6
    assert test.defects[-3:] == ["normals", "bumps+dents+colors+normals", "bumps"]
    assert test.notes == []
