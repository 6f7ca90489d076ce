"""A user's own files: what a protoad.toml may say, and what it may get wrong."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import miniatures
import numpy as np
import pytest
import tifffile

from protoad.data import TEMPLATE, Folder, check_dataset, list_categories, open_dataset, write_mask, write_xyz
from protoad.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.own_files(tmp_path / "bracket")


def _configure(root: Path, text: str) -> None:
    (root / "protoad.toml").write_text(text, encoding="utf-8")


def test_names_kinds_and_one_grid(root: Path) -> None:
    test = Folder(root, "bracket", "test")
    assert test.names == [
        "test/good/Gehäuse v1.0 links",
        "test/scratch/Gehäuse v1.0 links",
        "test/scratch/Gehäuse v1.1 links",
    ]
    assert test.defects == ["good", "scratch", "scratch"]
    sample = test[2]
    rgb, xyz = miniatures.frame(21)
    np.testing.assert_array_equal(sample.rgb, rgb)  # written at twice the size
    np.testing.assert_array_equal(sample.mask, miniatures.outline())
    np.testing.assert_allclose(sample.xyz, xyz, atol=6e-4, equal_nan=True)  # whole millimetres
    assert set(test.files(2)) == {"rgb", "depth", "mask", "config", "camera"}
    with pytest.raises(DataError, match=r"protoad\.toml: has no table \[validation\]; the category lacks its"):
        Folder(root, "bracket", "validation")


def test_one_category_or_several(root: Path) -> None:
    assert list_categories(root, "folder") == ["bracket"]
    assert list_categories(root.parent, "folder") == ["bracket"]
    assert len(open_dataset("folder", root.parent, "bracket", "train")) == 3
    metres = open_dataset("folder", root.parent, "bracket", "train", unit=0.002)[0]  # over the file of each of them
    assert np.nanmedian(metres.xyz[..., 2]) == pytest.approx(1.01, abs=0.02)
    with pytest.raises(DataError, match=r"has no category 'clamp'; found: bracket"):
        Folder(root.parent, "clamp", "train")
    (root / "protoad.toml").unlink()
    with pytest.raises(DataError, match=r"no protoad\.toml there or one folder below"):
        list_categories(root.parent, "folder")


def test_the_docs_show_the_template() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "data.md"
    assert f"```toml\n{TEMPLATE}```\n" in page.read_text()


def test_the_template_is_read_as_it_stands(tmp_path: Path) -> None:
    tables = tomllib.loads(TEMPLATE)
    for seed, table in enumerate((tables["train"], tables["test"]["good"], tables["test"]["scratch"])):
        rgb, xyz = miniatures.frame(seed)
        miniatures.write_image(tmp_path / table["rgb"].replace("*", "1"), rgb)
        miniatures.write_depth(tmp_path / table["depth"].replace("*", "1"), np.nan_to_num(1000 * xyz[..., 2]))
        if "mask" in table:
            write_mask(tmp_path / table["mask"].replace("*", "1"), miniatures.outline())
    _configure(tmp_path, TEMPLATE)
    (tmp_path / "camera.json").write_text('{"fx": 40, "fy": 40, "cx": 7.5, "cy": 5.5}')
    assert check_dataset("folder", tmp_path).problems == []
    numbers = re.sub(r"^camera = .*$", "", TEMPLATE, flags=re.MULTILINE).replace("# camera", "camera")
    _configure(tmp_path, numbers)
    (tmp_path / "camera.json").unlink()
    assert check_dataset("folder", tmp_path).problems == []


@pytest.mark.parametrize("how", ["xyz tiff", "npy", "depth tiff", "uint16 tiff"])
def test_kinds_of_geometry(how: str, tmp_path: Path) -> None:
    rgb, xyz = miniatures.frame(0)
    miniatures.write_image(tmp_path / "a.PNG", rgb)
    pattern, unit = {"xyz tiff": ('xyz = "*.tif"', 1), "npy": ('depth = "*.npy"', 1)}.get(how, ('depth = "*.TIFF"', 1))
    depth = xyz[..., 2]
    if how == "xyz tiff":
        write_xyz(tmp_path / "a.tif", xyz)
    elif how == "npy":
        np.save(tmp_path / "a.npy", depth[..., None])  # scanners like to keep a channel
    elif how == "depth tiff":
        tifffile.imwrite(tmp_path / "a.tiff", depth)
    else:
        unit = 0.0001
        tifffile.imwrite(tmp_path / "a.tiff", np.nan_to_num(np.round(depth / unit)).astype(np.uint16))
    camera = "camera = { fx = 40, fy = 40.0, cx = 7.5, cy = 5.5 }"
    _configure(tmp_path, f'unit = {unit}\n{camera}\n[train]\nrgb = "*.png"\n{pattern}\n')
    sample = Folder(tmp_path, tmp_path.name, "train")[0]
    np.testing.assert_allclose(sample.xyz, xyz, atol=6e-5 if unit < 1 else 1e-6, equal_nan=True)


@pytest.mark.parametrize("suffix", ["ply", "PCD"])
def test_clouds_as_scanners_export_them(suffix: str, tmp_path: Path) -> None:
    rgb, xyz = miniatures.frame(0)
    grey = rgb[..., 0]
    miniatures.write_image(tmp_path / "shots" / "a.png", grey)
    write = miniatures.ply if suffix == "ply" else miniatures.pcd
    (tmp_path / f"a.{suffix}").write_bytes(write(1000 * xyz))
    _configure(tmp_path, f'unit = "mm"\n[train]\nrgb = "shots/*.png"\nxyz = "*.{suffix}"\n')
    sample = Folder(tmp_path, tmp_path.name, "train")[0]  # a PLY without a grid takes that of the colour image
    np.testing.assert_allclose(sample.xyz, xyz, rtol=1e-6, equal_nan=True)
    np.testing.assert_array_equal(sample.rgb, np.repeat(grey[..., None], 3, axis=-1))
    miniatures.write_image(tmp_path / "shots" / "a.png", grey[:, :-1])
    if suffix == "ply":
        with pytest.raises(DataError, match=r"a\.ply: holds 192 points on no grid"):
            Folder(tmp_path, tmp_path.name, "train")[0]


def test_unsorted_parts_are_sorted_by_their_masks(root: Path) -> None:
    text = miniatures.OWN.partition("[test.good]")[0]
    table = '[test]\nrgb = "Test Teile/kratzer/*_color.png"\ndepth = "Test Teile/kratzer/*_depth.png"\n'
    _configure(root, text + table + 'mask = "Test Teile/kratzer/*_mask.png"\n')
    write_mask(root / "Test Teile" / "kratzer" / "Gehäuse v1.0 links_mask.png", np.zeros((24, 32), dtype=bool))
    test = Folder(root, "bracket", "test")
    assert (test.defects, test.labels, test.labelled) == (["good", "defect"], [0, 1], True)
    _configure(root, text + table)
    test = Folder(root, "bracket", "test")
    assert (test.defects, test.labels, test.labelled) == (["unsorted"] * 2, [0, 0], False)
    assert test.notes == ["nobody sorted these parts, and they have no masks: for inspection only"]
    assert [sample.label for sample in test] == [0, 0]


def test_masks_for_all_kinds_or_none(root: Path) -> None:
    text = miniatures.OWN.replace('mask = "Test Teile/kratzer/*_mask.png"\n', "")
    _configure(root, text)
    test = Folder(root, "bracket", "test")
    assert (test.labels, [sample.mask.any() for sample in test]) == ([0, 1, 1], [False] * 3)
    assert test.notes == ["its defects have no masks: images can be measured, pixels cannot"]
    more = text + miniatures.OWN.partition("[test.scratch]")[2].join(["[test.dent]", ""])
    _configure(root, more)
    with pytest.raises(DataError, match=r"some kinds in \[test\] have masks and some none"):
        Folder(root, "bracket", "test")


def test_orphans_and_empty_patterns_are_told(root: Path) -> None:
    (root / "good" / "Gehäuse v1.1 links_depth.png").unlink()
    (root / "good" / "Gehäuse v1.2 links_color.png").unlink()
    problems = check_dataset("folder", root).problems
    assert [(Path(p.file).name, p.reason.partition(";")[0]) for p in problems] == [
        ("Gehäuse v1.1 links_color.png", "no depth image of the same name in good/*_depth.png"),
        ("Gehäuse v1.2 links_depth.png", "no colour image of the same name in good/*_color.png"),
    ]
    _configure(root, miniatures.OWN.replace("good/*_depth.png", "good/*_z.png"))
    with pytest.raises(DataError, match=r"bracket/good: no file there matches 'good/\*_z\.png'"):
        Folder(root, "bracket", "train")
    _configure(root, miniatures.OWN.replace("good/*_depth.png", "nowhere/*_z.png"))
    with pytest.raises(DataError, match=r"bracket/nowhere: no such folder"):
        Folder(root, "bracket", "train")


def test_a_star_may_stand_for_a_folder(tmp_path: Path) -> None:
    for name in ("p1", "p2", ".hidden"):
        rgb, xyz = miniatures.frame(len(name))
        miniatures.write_image(tmp_path / "parts" / name / "c.png", rgb)
        write_xyz(tmp_path / "parts" / name / "c.tiff", xyz)
    (tmp_path / "parts" / "notes").mkdir()
    _configure(tmp_path, '[train]\nrgb = "parts/*/c.png"\nxyz = "parts\\\\*\\\\c.tiff"\n')
    assert Folder(tmp_path, tmp_path.name, "train").names == ["train/good/p1", "train/good/p2"]


def test_options_instead_of_a_file_and_over_it(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "elsewhere.toml"
    config.write_bytes(b"\xef\xbb\xbf" + miniatures.OWN.encode())  # as Windows' editor saves it
    os.remove(root / "protoad.toml")
    assert len(Folder(root, "bracket", "train", config=config)) == 3
    over = {"unit": "m", "camera.fx": "80"}
    with pytest.raises(DataError, match=r"option camera\.fx stands where the file has something else"):
        Folder(root, "bracket", "train", config=config, **over)
    flags = {"train.rgb": "good/*_color.png", "train.depth": "good/*_depth.png", "unit": "mm", "camera": "camera.json"}
    assert len(list(Folder(root, "bracket", "train", **flags))) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('unit = "mm"', 'unit = "cm"', 'unit is \'cm\', expected "m", "mm", or how many metres'),
        ('unit = "mm"', "unit = -1", "unit is -1"),
        ('unit = "mm"', "unit = true", "unit is True"),
        ('unit = "mm"', "units = 3", "unknown entry: units; expected some of unit, camera.*did you mean unit"),
        ('unit = "mm"', 'unit = "mm', "not a TOML file"),
        ('unit = "mm"', "x = " + "[" * 5000, "not a TOML file"),
        ("[train]\n", '[train]\ncolor = "a/*.png"\n', r"unknown kind of file in \[train\]: color"),
        ('rgb = "good/*_color.png"', "", r"\[train\] has depth; expected rgb, and xyz or depth"),
        ("[train]\n", '[train]\nxyz = "a/*.tiff"\n', r"\[train\] has xyz, rgb, depth; expected rgb, and xyz or depth"),
        ("good/*_color.png", "good/color.png", "expected a path with one \\*, which names the part"),
        ("good/*_color.png", "*/*_color.png", "expected a path with one \\*"),
        ("good/*_color.png", "/good/*_color.png", "expected a path below the folder"),
        ('rgb = "good/*_color.png"', "rgb = 3", "rgb is 3, expected a path with one"),
        ('camera = "camera.json"', "", "depth images need a camera with fx, fy, cx, cy"),
        ('camera = "camera.json"', "camera = { fx = 1, fy = 1, cx = 0 }", "depth images need a camera"),
        ('camera = "camera.json"', "camera = { fx = 0, fy = 1, cx = 0, cy = 0 }", "depth images need a camera"),
        ('camera = "camera.json"', 'camera = "gone.json"', r"gone\.json: no such file"),
        ("[train]\n", "train = 3\n[validation]\n", r"\[train\] is 3, expected a table of patterns"),
    ],
)
def test_what_a_file_may_get_wrong(old: str, new: str, message: str, root: Path) -> None:
    assert old in miniatures.OWN
    _configure(root, miniatures.OWN.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        Folder(root, "bracket", "train")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"fx": "wide"}', '{"fx": 1e999, "fy": 1, "cx": 0, "cy": 0}', "\xff"]
)
def test_bad_cameras(text: str, root: Path) -> None:
    (root / "camera.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"camera\.json: "):
        Folder(root, "bracket", "train")


def test_a_camera_of_another_size(root: Path) -> None:
    camera = {"fx": 40, "fy": 40, "cx": 7.5, "cy": 5.5, "width": 32, "height": 24}
    (root / "camera.json").write_text(json.dumps(camera))
    with pytest.raises(DataError, match=r"_depth\.png: is 16 x 12 pixels, but its camera has 32 x 24"):
        Folder(root, "bracket", "train")[0]


def test_depth_of_8_bits_is_no_depth(root: Path) -> None:
    for path in (root / "good").glob("*_depth.png"):
        miniatures.write_image(path, np.zeros((12, 16), np.uint8))
    with pytest.raises(DataError, match=r"_depth\.png: is an image of kind L, expected a 16-bit grey depth image"):
        Folder(root, "bracket", "train")[0]


def test_real_structured_light_frames() -> None:
    data = os.environ.get("PROTOAD_DATA")
    if not data:
        pytest.skip("set PROTOAD_DATA to a folder with rgbd/phoxi to read real frames")
    patterns = {"test.rgb": "color_*.png", "test.depth": "depth_*.npy", "test.mask": "segmask_*.png"}
    test = Folder(Path(data) / "rgbd" / "phoxi", "phoxi", "test", camera="phoxi.intr", **patterns)
    for sample in test:
        assert sample.rgb.shape == (386, 516, 3)
        assert 0.3 < np.isnan(sample.xyz[..., 2]).mean() < 0.35
        # the part lies in the middle of a bin and is lit: its mask, made at the depth's size, must fit the colour
        assert sample.rgb[sample.mask].std() > 0


def test_a_declaration_without_tables_declares_nothing(root: Path) -> None:
    _configure(root, 'unit = "mm"\n')
    (problem,) = check_dataset("folder", root).problems
    assert problem.reason == "bracket has none of the splits train, validation, test"
