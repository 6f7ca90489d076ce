"""`pirn check`, and training on data sets of other layouts, as a user would."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
from PIL import Image
from pirn.cli import main
from pirn.detector import PIRNDetector

from protoad.checkpoint import load_checkpoint, save_checkpoint
from protoad.data import Intrinsics, read_xyz, write_dataset, write_xyz
from protoad.report import read_jsonl

FAST = ["--image-size", "96", "--epochs", "1", "--num-prototypes", "4", "--shots", "3"]


def test_a_sound_data_set(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = miniatures.eyecandies(tmp_path / "root")
    argv = ["check", "--dataset", "eyecandies", "--root", str(root), "--json", str(tmp_path / "found.json")]
    assert main(argv) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["GummyBear", "train", "3", "3", "good", "16", "x", "12", "0.0", "%"]
    assert "GummyBear, test: 1 parts that the data set calls anomalous have an empty mask and count as good" in out[6]
    assert out[-1] == "8 parts, nothing wrong"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == []
    assert found["splits"][2]["defects"] == {"good": 2, "bumps": 1, "dents+normals": 1}


def test_problems_are_listed_and_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = miniatures.mvtec3d(tmp_path / "root")
    for path in (root / "nut" / "train" / "good" / "xyz").iterdir():
        path.unlink()
    argv = ["check", "--root", str(root), "--json", str(tmp_path / "found.json")]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err == f"pirn: {root}: 3 problems found, among 4 parts\n"
    assert "train/good/rgb/000.png (and 2 more): no point cloud of the same name" in captured.out
    assert len(json.loads((tmp_path / "found.json").read_text())["problems"]) == 3


def test_a_folder_without_a_declaration_is_told_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", "--dataset", "folder", "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert f"# write this to {tmp_path}/protoad.toml" in captured.out
    assert "[train]" in captured.out
    assert len(captured.err.splitlines()) == 1
    assert main(["check", "--dataset", "folder", "--root", str(miniatures.own_files(tmp_path))]) == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dataset", "mvtec"], "unknown data set 'mvtec'"),
        (["--option", "light=0"], "has no option 'light'"),
        (["--jobs", "0"], "jobs: expected 1 or more"),
        (["--category", "bolt"], "has no category 'bolt'; found: nut"),
        (["--root", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_arguments(extra: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", "--root", str(miniatures.mvtec3d(tmp_path)), *extra]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("light", "expected KEY=VALUE, got 'light'"),
        ("=4", "expected KEY"),
        ("report=x", "'report' is no option of a data"),
    ],
)
def test_an_option_is_an_assignment(option: str, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--root", "x", "--option", option])
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_dataset(root, parts=("tile",), train=3, validation=0, test_good=2, test_per_defect=1, seed=0, size=96)
    return root


def _metrics(argv: list[str], out: Path) -> bytes:
    assert main(["evaluate", *argv, "--json", str(out)]) == 0
    return out.read_bytes()


def test_the_same_files_through_another_reader_give_the_same_figures(parts: Path, tmp_path: Path) -> None:
    tables = {"train": "train/good", "test.good": "test/good"}
    tables |= {f"test.{kind.name}": f"test/{kind.name}" for kind in (parts / "tile" / "test").iterdir()}
    text = "".join(
        f'[{table}]\nrgb = "{place}/rgb/*.png"\nxyz = "{place}/xyz/*.tiff"\n'
        + (f'mask = "{place}/gt/*.png"\n' if table not in ("train", "test.good") else "")
        for table, place in tables.items()
    )
    (tmp_path / "tile.toml").write_text(text)
    root = ["--root", str(parts)]
    assert main(["train", *root, "--category", "tile", "--out", str(tmp_path / "a"), *FAST]) == 0
    config = ["--dataset", "folder", "--option", f"config={tmp_path / 'tile.toml'}"]
    root = ["--root", str(parts / "tile")]
    assert main(["train", *config, *root, "--category", "all", "--out", str(tmp_path / "b"), *FAST]) == 0
    header = load_checkpoint(tmp_path / "b" / "tile" / "checkpoint.safetensors").header
    assert header["source"]["dataset"] == "folder"
    first = _metrics(["--checkpoint", str(tmp_path / "a"), "--root", str(parts)], tmp_path / "a.json")
    second = _metrics(["--checkpoint", str(tmp_path / "b"), *root], tmp_path / "b.json")  # it knows how it was trained
    assert first == second
    (tmp_path / "tile.toml").rename(tmp_path / "moved.toml")
    moved = ["--option", f"config={tmp_path / 'moved.toml'}"]
    assert _metrics(["--checkpoint", str(tmp_path / "b"), *root, *moved], tmp_path / "c.json") == first
    argv = ["detect", "--checkpoint", str(tmp_path / "b"), *root, *moved, "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    names = {row["name"] for row in read_jsonl(tmp_path / "out" / "scores.jsonl")}
    assert {"test_good_000", "test_good_001"} < names
    assert (tmp_path / "out" / "overlays" / "test_good_000.png").is_file()


def test_parts_without_labels_cannot_be_measured_but_inspected(parts: Path, tmp_path: Path, capsys) -> None:
    flags = {"train.rgb": "train/good/rgb/*.png", "train.xyz": "train/good/xyz/*.tiff"}
    flags |= {name.replace("train.", "test."): pattern.replace("train/", "test/") for name, pattern in flags.items()}
    options = [word for name, pattern in flags.items() for word in ("--option", f"{name}={pattern}")]
    root = ["--root", str(parts / "tile")]
    argv = ["train", "--dataset", "folder", *options, *root, "--category", "tile", "--out", str(tmp_path / "a"), *FAST]
    assert main(argv) == 0
    assert main(["evaluate", "--checkpoint", str(tmp_path / "a"), *root, "--no-yardsticks"]) == 2
    assert "nobody sorted these parts" in capsys.readouterr().err
    assert main(["detect", "--checkpoint", str(tmp_path / "a"), *root, "--out", str(tmp_path / "out")]) == 0


def test_the_unit_goes_along_with_the_checkpoint(parts: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(parts, tmp_path / "mm"))
    for path in root.rglob("*.tiff"):
        write_xyz(path, 1000 * read_xyz(path))
    argv = ["--root", str(root), "--category", "tile", "--out", str(tmp_path / "a"), *FAST, "--option", "unit=mm"]
    assert main(["train", *argv]) == 0
    assert main(["evaluate", "--checkpoint", str(tmp_path / "a"), "--root", str(root)]) == 0
    good = root / "tile" / "test" / "good"
    single = ["--rgb", str(good / "rgb" / "000.png"), "--xyz", str(good / "xyz" / "000.tiff")]
    assert main(["detect", "--checkpoint", str(tmp_path / "a"), *single, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.filterwarnings("default::protoad.data.DataWarning")
def test_the_unit_that_a_folder_declares_reaches_single_parts(parts: Path, tmp_path: Path, capsys) -> None:
    root = Path(shutil.copytree(parts, tmp_path / "mm"))
    for path in root.rglob("*.tiff"):
        write_xyz(path, 1000 * read_xyz(path))
    tables = {"train": "train/good", "test": "test/good"}
    declared = [f'[{name}]\nrgb = "{at}/rgb/*.png"\nxyz = "{at}/xyz/*.tiff"' for name, at in tables.items()]
    good = root / "tile" / "test" / "good"
    (root / "tile" / "protoad.toml").write_text("\n".join(['unit = "mm"', *declared]), encoding="utf-8")
    assert (
        main(["prepare", "--dataset", "folder", "--root", str(root), "--out", str(tmp_path / "c"), "--size", "96"]) == 0
    )
    single = [
        word for kind, end in (("rgb", "png"), ("xyz", "tiff")) for word in (f"--{kind}", f"{good / kind}/000.{end}")
    ]
    scores = {}
    for name, where in {
        "a": ["--dataset", "folder", "--root", str(root)],
        "b": ["--root", str(tmp_path / "c")],
    }.items():
        out = tmp_path / name
        assert main(["train", *where, "--category", "tile", "--out", str(out), *FAST]) == 0
        for way, asked in {"single": single, "declared": ["--dataset", "folder", "--root", str(root)]}.items():
            assert main(["detect", "--checkpoint", str(out), *asked, "--out", str(out / way)]) == 0
            scores[name, way] = read_jsonl(out / way / "scores.jsonl")[0]["score"]
    assert len(set(scores.values())) == 1
    assert main(["detect", "--checkpoint", str(out), *single, "--option", "unit=m", "--out", str(out / "m")]) == 0
    assert "if that is millimetres" in capsys.readouterr().err


def test_the_camera_that_a_folder_declares_reaches_single_parts(parts: Path, tmp_path: Path) -> None:
    """Depth images beside a conveyor, judged by a detector that learnt from depth images."""
    root = Path(shutil.copytree(parts, tmp_path / "depth"))
    for path in root.rglob("*.tiff"):
        depth = np.nan_to_num(1e5 * read_xyz(path)[..., 2]).round()
        path.unlink()
        Image.fromarray(depth.astype(np.uint16)).save(path.with_suffix(".png"))
    height, width = depth.shape
    tables = {"train": "train/good", "test": "test/good"}
    declared = [f'[{name}]\nrgb = "{at}/rgb/*.png"\ndepth = "{at}/xyz/*.png"' for name, at in tables.items()]
    camera = f"camera = {{ fx = 200, fy = 200, cx = 48, cy = 48, width = {width}, height = {height} }}"
    (root / "tile" / "protoad.toml").write_text("\n".join(["unit = 1e-5", camera, *declared]), encoding="utf-8")
    where = ["--dataset", "folder", "--root", str(root)]
    assert main(["prepare", *where, "--out", str(tmp_path / "c"), "--size", "96"]) == 0
    scores = set()
    for name, taught in {"a": where, "b": ["--root", str(tmp_path / "c")]}.items():
        out = tmp_path / name
        assert main(["train", *taught, "--category", "tile", "--out", str(out), *FAST]) == 0
        for way, asked in {"single": ["--folder", str(root / "tile" / "test" / "good")], "declared": where}.items():
            assert main(["detect", "--checkpoint", str(out), *asked, "--out", str(out / way)]) == 0
            scores.add(read_jsonl(out / way / "scores.jsonl")[0]["score"])
    assert len(scores) == 1
    assert PIRNDetector.load(tmp_path / "b" / "tile").camera == Intrinsics(200, 200, 48, 48, (height, width))


@pytest.mark.parametrize(("options", "expected"), [([], 1.0), ([["unit", "mm"]], 0.001)])
def test_a_detector_of_before_units_were_kept(parts: Path, tmp_path: Path, options: list, expected: float) -> None:
    assert main(["train", "--root", str(parts), "--category", "tile", "--out", str(tmp_path), *FAST]) == 0
    path = tmp_path / "tile" / "checkpoint.safetensors"
    tensors, header = load_checkpoint(path)
    assert header.pop("unit") == 1
    save_checkpoint(path, tensors, {**header, "source": {"dataset": "mvtec3d", "options": options}})
    assert PIRNDetector.load(path.parent).unit == expected


@pytest.mark.filterwarnings("default::protoad.data.DataWarning")
def test_a_warning_is_one_sentence(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = Path(shutil.copytree(parts, tmp_path / "mm"))
    for path in root.rglob("*.tiff"):
        write_xyz(path, 1000 * read_xyz(path))
    argv = ["train", "--root", str(root), "--category", "tile", "--out", str(tmp_path / "a"), *FAST]
    assert main(argv) == 0
    (line,) = capsys.readouterr().err.splitlines()  # for three parts, and without a line of code
    assert line.startswith("pirn: warning: train/good/000 in ")
    assert line.endswith("if that is millimetres, give the option unit=mm")


def test_real_candy(tmp_path: Path) -> None:
    data = os.environ.get("PROTOAD_DATA")
    if not data:
        pytest.skip("set PROTOAD_DATA to a folder with eyecandies/CandyCane to read rendered frames")
    root = ["--root", f"{data}/eyecandies"]
    assert main(["check", "--dataset", "eyecandies", *root]) == 0
    argv = ["train", "--dataset", "eyecandies", *root, "--category", "CandyCane", "--out", str(tmp_path), *FAST]
    assert main(argv) == 0
    assert main(["evaluate", "--checkpoint", str(tmp_path), *root, "--json", str(tmp_path / "a.json")]) == 0
    assert np.isfinite(json.loads((tmp_path / "a.json").read_text())["pirn"]["pixel_auroc"])
