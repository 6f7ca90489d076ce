"""What all data sets have in common, whatever their layout."""

from __future__ import annotations

import os
import pickle
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import miniatures
import numpy as np
import pytest
from PIL import Image

from protoad.data import (
    DATASETS,
    DataWarning,
    MVTec3D,
    Sample,
    check_dataset,
    list_categories,
    open_dataset,
    prepare,
    read_mask,
    read_rgb,
    read_xyz,
    select_shots,
    write_mask,
    write_xyz,
)
from protoad.errors import ConfigError, DataError

tifffile = pytest.importorskip("tifffile")

SETS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "mvtec3d": ("mvtec3d", miniatures.mvtec3d, "nut"),
    "ground_truth": ("mvtec3d", lambda root: miniatures.mvtec3d(root, masks="ground_truth"), "nut"),
    "eyecandies": ("Eyecandies", miniatures.eyecandies, "GummyBear"),
    "d3 folders": ("real_iad_d3", miniatures.real_iad_folders, "knob-cap"),
    "d3 flat": ("real-iad-d3", lambda root: miniatures.real_iad_folders(root, good="good", flat=True), "knob-cap"),
    "d3 lists": ("real-iad-d3", miniatures.real_iad_lists, "knob_cap"),
    "3d-adam": ("3D-ADAM", miniatures.adam3d, "gripper_closed"),
    "folder": ("folder", miniatures.own_files, "root"),
}
DEFECTIVE = {"mvtec3d": 2, "ground_truth": 2, "eyecandies": 2, "3d-adam": 1}


@pytest.fixture(params=SETS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, str, int]:
    name, make, category = SETS[request.param]
    return name, make(tmp_path / "root"), category, DEFECTIVE.get(request.param, 2)


def test_one_interface_for_all(made: tuple[str, Path, str, int]) -> None:
    name, root, category, defective = made
    assert list_categories(root, name) == [category]
    for split in ("train", "test"):
        dataset = open_dataset(name, root, category, split)
        assert dataset.category == category
        assert dataset.labelled
        assert len(dataset) == len(dataset.names) == len(set(dataset.names))
        for i, sample in enumerate(dataset):
            assert isinstance(sample, Sample)
            assert (sample.name, sample.defect, sample.label) == (
                dataset.names[i],
                dataset.defects[i],
                dataset.labels[i],
            )
            assert sample.mask.any() == bool(sample.label) == (sample.defect != "good")
            assert sample.path == dataset.files(i)["rgb"]
            assert all(path.is_file() for path in dataset.files(i).values())
            assert np.nanmedian(sample.xyz[..., 2]) == pytest.approx(3.5 if name == "Eyecandies" else 0.505, rel=0.2)
            assert prepare(sample, 32).valid.any()
    assert sum(open_dataset(name, root, category, "test").labels) == defective
    train = open_dataset(name, root, category, "train")
    assert train.labels == [0, 0, 0]
    assert [part.name for part in pickle.loads(pickle.dumps(train))] == train.names  # a pool of processes sends it


def test_reading_and_checking_change_no_byte(made: tuple[str, Path, str, int]) -> None:
    name, root, _, _ = made
    before = miniatures.tree_hash(root)
    findings = check_dataset(name, root)
    assert findings.problems == []
    assert check_dataset(name, root) == findings
    assert miniatures.tree_hash(root) == before


def test_n_shots_are_n(made: tuple[str, Path, str, int]) -> None:
    name, root, category, _ = made
    names = open_dataset(name, root, category, "train").names
    for shots in (1, 2, 3):
        assert len(select_shots(names, shots, seed=0)) == shots
    with pytest.raises(DataError, match="asked for 4 shots, found 3"):
        select_shots(names, 4, seed=0)


@pytest.mark.parametrize("parent", ["xyz", "rgb", "tiff", "gt", "depth", "train", "ä b.c"])
def test_a_folder_above_may_have_any_name(parent: str, tmp_path: Path) -> None:
    for label, (name, make, category) in SETS.items():
        root = make(tmp_path / label / parent / "root")
        dataset = open_dataset(name, root, category, "test")
        assert all(root in path.parents for i in range(len(dataset)) for path in dataset.files(i).values())
        assert len(list(dataset)) == len(dataset)


def test_unknown_names_and_options(tmp_path: Path) -> None:
    root = miniatures.mvtec3d(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown data set 'MVTec3D-AD'.*did you mean mvtec3d\?"):
        open_dataset("MVTec3D-AD", root, "nut", "train")
    with pytest.raises(ConfigError, match=r"unknown data set 'imagenet', expected one of mvtec3d, eyecandies"):
        list_categories(root, "imagenet")
    with pytest.raises(ConfigError, match=r"MVTec 3D-AD has no option 'light'; its options: unit=m\|mm"):
        open_dataset("mvtec3d", root, "nut", "train", light=0)
    with pytest.raises(ConfigError, match=r"option unit: expected m or mm, got 'cm'"):
        open_dataset("mvtec3d", root, "nut", "train", unit="cm")
    for name in set(DATASETS) - {"folder"}:
        with pytest.raises(DataError, match=r"nowhere: no such folder"):
            open_dataset(name, tmp_path / "nowhere", "nut", "train")


def test_adam_has_no_validation_split_and_no_alpha(tmp_path: Path) -> None:
    root = miniatures.adam3d(tmp_path)
    with pytest.raises(DataError, match=r"unknown split 'validation', expected one of train, test in 3D-ADAM"):
        open_dataset("3d-adam", root, "gripper_closed", "validation")
    train = open_dataset("3d-adam", root, "gripper_closed", "train")
    assert train.names == [f"train/good/scan.{i}" for i in range(3)]
    np.testing.assert_array_equal(train[1].rgb, miniatures.frame(1)[0])
    mask = root / "gripper_closed" / "train" / "good" / "ground_truth" / "scan.0.png"
    write_mask(mask, np.ones(miniatures.SIZE, dtype=bool))
    with pytest.raises(DataError, match=r"train/good/ground_truth/scan\.0\.png: outlines a defect"):
        train[0]


def test_large_frames(tmp_path: Path) -> None:
    size = (1400, 2210)
    folder = tmp_path / "1m1" / "train" / "good"
    rgb, xyz = miniatures.frame(0, size)
    miniatures.write_image(folder / "rgb" / "a.png", rgb)
    write_xyz(folder / "xyz" / "a.tiff", xyz)
    sample = open_dataset("3d-adam", tmp_path, "1m1", "train")[0]
    np.testing.assert_array_equal(sample.rgb, rgb)
    np.testing.assert_array_equal(sample.xyz, xyz)


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (64, 64)])
def test_a_marked_pixel_stays_one_pixel_in_frames_that_are_not_square(size: tuple[int, int], tmp_path: Path) -> None:
    """Peers stretch colour and mask but pad the cloud: in rope and tire the three part company."""
    folder = tmp_path / "rope" / "test" / "cut"
    place = (size[0] // 3, size[1] // 4)
    height, width = size
    v, u = np.mgrid[:height, :width].astype(np.float32)
    xyz = np.stack([(u - width / 2) * 5e-4, (v - height / 2) * 5e-4, np.full(size, 0.5, np.float32)], axis=-1)
    block = np.zeros(size, dtype=bool)
    block[place[0] : place[0] + 4, place[1] : place[1] + 4] = True
    xyz[block] = np.nan
    write_xyz(folder / "xyz" / "000.tiff", xyz)
    miniatures.write_image(folder / "rgb" / "000.png", np.repeat(np.uint8(255) * block[..., None], 3, axis=-1))
    write_mask(folder / "gt" / "000.png", block)
    prepared = prepare(MVTec3D(tmp_path, "rope", "test")[0], max(size), foreground=False)
    inside = (prepared.rgb.mean(dim=0) > 0.5).numpy()
    top, left = (max(size) - height) // 2, (max(size) - width) // 2
    expected = np.zeros((max(size),) * 2, dtype=bool)
    expected[top : top + height, left : left + width] = block
    frame = np.zeros_like(expected)
    frame[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_array_equal(prepared.mask.numpy(), expected)
    np.testing.assert_array_equal(~prepared.valid.numpy() & frame, expected)


def test_millimetres_are_warned_of_once_and_converted_on_request(tmp_path: Path) -> None:
    root = miniatures.mvtec3d(tmp_path)
    files = sorted((root / "nut" / "train" / "good" / "xyz").iterdir())
    metres = [read_xyz(path) for path in files]
    for path, xyz in zip(files, metres, strict=True):
        write_xyz(path, 1000 * xyz)
    train = MVTec3D(root, "nut", "train")
    with pytest.warns(DataWarning, match=r"train/good/000 in .*: its points lie 5\d\d.* from the camera.*unit=mm"):
        first = train[0]
    assert np.nanmedian(first.xyz) > 100 or np.nanmax(first.xyz) > 100  # nothing is converted in silence
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(train)
        samples = list(MVTec3D(root, "nut", "train", unit="mm"))
    for sample, xyz in zip(samples, metres, strict=True):
        np.testing.assert_allclose(sample.xyz, xyz, rtol=1e-6)


def test_odd_names(tmp_path: Path) -> None:
    root = miniatures.mvtec3d(tmp_path / "disk")
    good = root / "nut" / "train" / "good"
    for i, stem in enumerate(("part v1.2 (left)", unicodedata.normalize("NFC", "größe"), "UPPER")):
        for kind, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
            file = (good / kind / f"{i:03d}").with_suffix(suffix)
            name = stem + (suffix.upper() if stem == "UPPER" else suffix)
            # a file system may spell an umlaut as two characters, and a copy elsewhere as one
            file.rename(file.with_name(unicodedata.normalize("NFD", name) if kind == "xyz" else name))
    for clutter in ("Thumbs.db", ".DS_Store", "._000.png", "desktop.ini"):
        (good / "rgb" / clutter).write_bytes(b"clutter")
    train = MVTec3D(root, "nut", "train")
    assert train.names == ["train/good/UPPER", "train/good/größe", "train/good/part v1.2 (left)"]
    assert len(list(train)) == 3
    os.symlink(root, tmp_path / "link")
    assert MVTec3D(tmp_path / "link", "nut", "train").names == train.names
    os.symlink(good / "rgb" / "none.png", good / "rgb" / "dangling.png")
    write_xyz(good / "xyz" / "dangling.tiff", np.ones((12, 16, 3), np.float32))
    with pytest.raises(DataError, match=r"dangling\.png: no such file"):
        MVTec3D(root, "nut", "train")[1]


def test_masks_of_three_equal_channels_and_of_palettes(tmp_path: Path) -> None:
    mask = miniatures.outline()
    grey = np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1)
    Image.fromarray(grey).save(tmp_path / "rgb.png")
    Image.fromarray(np.concatenate([grey, np.full((*mask.shape, 1), 255, np.uint8)], axis=-1)).save(tmp_path / "a.png")
    for white in (0, 1):  # an editor may put white first
        palette = Image.fromarray(np.where(mask, white, 1 - white).astype(np.uint8)).convert("P")
        palette.putpalette([255] * 3 + [0] * 3 if white == 0 else [0] * 3 + [255] * 3)
        palette.save(tmp_path / f"p{white}.png")
    for name in ("rgb", "a", "p0", "p1"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), mask, err_msg=name)


def test_grey_images_only_on_request(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png", grey=True), np.repeat(grey[..., None], 3, axis=2))
    with pytest.raises(DataError, match="kind L, expected an 8-bit colour image"):
        read_rgb(tmp_path / "a.png")


def test_formats_that_start_other_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a\.png: not a readable image, or none of PNG, JPEG"):
        read_rgb(tmp_path / "a.png")
