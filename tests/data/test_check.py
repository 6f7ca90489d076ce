"""Every oddity is found, all of them at once, with the file's name and a reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
import tifffile

from protoad.data import Findings, check_dataset, read_xyz, write_mask, write_xyz
from protoad.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.mvtec3d(tmp_path)


def _reasons(findings: Findings) -> dict[str, str]:
    return {"/".join(Path(problem.file).parts[-4:]): problem.reason for problem in findings.problems}


def test_figures(root: Path) -> None:
    findings = check_dataset("mvtec3d", root)
    assert findings.problems == []
    assert [(s.category, s.split, s.parts, s.defects, s.sizes) for s in findings.splits] == [
        ("nut", "train", 3, {"good": 3}, {"16 x 12": 3}),
        ("nut", "validation", 1, {"good": 1}, {"16 x 12": 1}),
        ("nut", "test", 3, {"bump": 2, "good": 1}, {"16 x 12": 3}),
    ]
    shares = sorted(np.isnan(miniatures.frame(seed)[1][..., 2]).mean() for seed in range(3))
    assert findings.splits[0].invalid == pytest.approx(shares)


def test_all_problems_at_once(root: Path) -> None:
    train, test = root / "nut" / "train" / "good", root / "nut" / "test" / "bump"
    (train / "xyz" / "000.tiff").unlink()
    broken = train / "rgb" / "001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (train / "xyz" / "001.tiff").write_bytes(b"II*\0")
    miniatures.write_image(train / "rgb" / "002.png", np.zeros((12, 17, 3), np.uint8))
    write_mask(test / "gt" / "000.png", np.zeros(miniatures.SIZE, dtype=bool))
    (test / "gt" / "001.png").unlink()
    write_mask(root / "nut" / "test" / "good" / "gt" / "000.png", miniatures.outline())
    reasons = _reasons(check_dataset("mvtec3d", root))
    assert {name: reason[:30] for name, reason in reasons.items()} == {
        "train/good/rgb/000.png": "no point cloud of the same nam",
        "train/good/rgb/001.png": "not a readable image (ends in ",
        "train/good/xyz/001.tiff": "not a readable TIFF file (erro",
        "train/good/xyz/002.tiff": "is 16 x 12 pixels, but " + str(train)[:7],
        "test/bump/gt/000.png": "outlines nothing, but the part",
        "test/bump/rgb/001.png": "no mask of the same name in /t"[:30],
        "test/good/gt/000.png": "outlines a defect, but its fol",
    }


def _change(path: Path, change: dict) -> None:
    xyz = np.nan_to_num(read_xyz(path))
    for index, value in change.items():
        xyz[index] = value
    tifffile.imwrite(path, xyz, photometric="rgb")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({...: 0, (3, 4): (0.1, 0.1, 0.5)}, "has 1 valid points among 192 pixels; scan the part again"),
        ({(..., 2): 0.25}, "is exactly flat, every z is 0.25; is it a measurement?"),
        (
            {(3, 4): -9999.0, (3, 5): 65535.0},
            "has 2 points more than 20 times as far as usual, up to 1.135e+05; if that",
        ),
        ({(0, 0): 1e30}, "has 1 points more than 20 times as far as usual, up to 1.732e+30"),
        ({...: 0}, "holds no valid point, only (0, 0, 0) or not finite"),
        ({...: np.nan}, "holds no valid point"),
        ({...: np.inf}, "holds no valid point"),
    ],
)
def test_clouds_that_can_be_read_and_are_none(change: dict, reason: str, root: Path) -> None:
    path = root / "nut" / "train" / "good" / "xyz" / "001.tiff"
    _change(path, change)
    (problem,) = check_dataset("mvtec3d", root).problems
    assert problem[:3] == ("nut", "train", str(path))
    assert problem.reason.startswith(reason)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_holes_of_every_kind_in_one_cloud_are_no_problem(value: float, root: Path) -> None:
    for i, path in enumerate(sorted((root / "nut" / "train" / "good" / "xyz").iterdir())):
        _change(path, {(2, 3): (value,) * 3, (4, 5): np.nan, (5, 6): (0, 0, np.inf), (7, 8 + i): 0})
    findings = check_dataset("mvtec3d", root)
    assert findings.problems == []
    assert all(0 < share < 0.2 for share in findings.splits[0].invalid or ())


def test_duplicate_points_are_no_problem(root: Path) -> None:
    _change(root / "nut" / "train" / "good" / "xyz" / "001.tiff", {5: (0.1, 0.1, 0.5)})
    assert check_dataset("mvtec3d", root).problems == []


def test_millimetres_are_one_problem_of_a_split(root: Path) -> None:
    for path in (root / "nut" / "train" / "good" / "xyz").iterdir():
        write_xyz(path, 1000 * read_xyz(path))
    (problem,) = check_dataset("mvtec3d", root).problems
    assert problem.file == f"{root}/nut/train/good/xyz/000.tiff (and 2 more)"
    assert "if that is millimetres, give the option unit=mm" in problem.reason
    assert len(check_dataset("mvtec3d", root, unit="mm").problems) == 0  # nor are micrometres suspected in the rest


def test_leaks(root: Path) -> None:
    train, test = root / "nut" / "train" / "good", root / "nut" / "test" / "good"
    shutil.copy(train / "rgb" / "001.png", test / "rgb" / "000.png")
    shutil.copy(train / "xyz" / "001.tiff", train / "xyz" / "002.tiff")
    reasons = _reasons(check_dataset("mvtec3d", root))
    leak = ", which is in train: one of them is in the wrong split"
    assert reasons == {
        "test/good/rgb/000.png": f"is the same, byte for byte, as {train}/rgb/001.png{leak}",
        "train/good/xyz/002.tiff": f"is the same, byte for byte, as {train}/xyz/001.tiff",
    }


def test_processes_find_the_same(root: Path) -> None:
    (root / "nut" / "train" / "good" / "rgb" / "001.png").write_bytes(b"\x89PNG")
    steps: list[tuple[int, int]] = []
    findings = check_dataset("mvtec3d", root, jobs=2, progress=lambda done, total: steps.append((done, total)))
    assert findings == check_dataset("mvtec3d", root, jobs=1)
    assert steps == [(i, 7) for i in range(1, 8)]
    assert len(findings.problems) == 1


def test_what_is_not_there(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "nut" / "validation")
    assert check_dataset("mvtec3d", root).notes == ["nut: there is no validation split"]
    (root / "nut" / "validation").mkdir()
    assert [p.reason for p in check_dataset("mvtec3d", root).problems] == [
        "its validation split is there, but holds no part"
    ]
    with pytest.raises(DataError, match=r"has no category 'bolt'; found: nut"):
        check_dataset("mvtec3d", root, ["bolt"])
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"other: holds no category of MVTec 3D-AD; is that the right folder"):
        check_dataset("mvtec3d", tmp_path / "other")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        check_dataset("mvtec3d", tmp_path / "nowhere")


def test_only_the_categories_asked_for(root: Path) -> None:
    miniatures.mvtec3d(root, "bolt", size=(20, 10))
    assert {s.category for s in check_dataset("mvtec3d", root).splits} == {"bolt", "nut"}
    findings = check_dataset("mvtec3d", root, ["bolt"])
    assert [s.sizes for s in findings.splits] == [{"10 x 20": 3}, {"10 x 20": 1}, {"10 x 20": 3}]
    assert json.dumps(findings._asdict())  # plain data throughout


def test_names_that_are_no_text_can_be_printed_and_stored(root: Path) -> None:
    odd = os.fsdecode(b"\xff\xfe.png")
    miniatures.write_image(root / "nut" / "train" / "good" / "rgb" / "000b.png", miniatures.frame(5)[0])
    os.rename(root / "nut" / "train" / "good" / "rgb" / "000b.png", root / "nut" / "train" / "good" / "rgb" / odd)
    (problem,) = check_dataset("mvtec3d", root).problems
    assert problem.file.endswith("\\udcff\\udcfe.png")
    assert json.dumps(problem, ensure_ascii=False).encode()


def test_a_folder_that_may_not_be_looked_into(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=rf"{root}: cannot be looked into \(Permission denied\)"):
        check_dataset("mvtec3d", root)
