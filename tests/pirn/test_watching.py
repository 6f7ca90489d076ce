"""Parts as they arrive: whole, cut, late, broken, again."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
from pirn import Inspector
from pirn.cli import main
from pirn.watching import Watch

from protoad import DataError
from protoad.report import read_jsonl


@pytest.fixture(scope="module")
def inspector(calibrated: Path) -> Inspector:
    return Inspector.load(calibrated)


class Line:
    """A folder where parts arrive, and what was said of them."""

    def __init__(self, source: Path, inspector: Inspector, folder: Path, patience: float = 1e9) -> None:
        self.source, self.inspector, self.folder, self.out = source, inspector, folder / "in", folder / "out"
        for kind in ("rgb", "xyz"):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
        self.said: list[str] = []
        self.watch = self.begin(patience)

    def begin(self, patience: float) -> Watch:
        return Watch(self.inspector, self.folder, self.out, patience=patience, say=self.said.append)

    def bring(self, name: str, *, kind: str = "good", only: str = "rgb xyz", share: float = 1.0) -> None:
        for part, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
            if part in only:
                data = (self.source / kind / part / f"000{suffix}").read_bytes()
                (self.folder / part / f"{name}{suffix}").write_bytes(data[: int(share * len(data))])

    def look(self, times: int = 2) -> int:
        return sum(self.watch.look() for _ in range(times))

    @property
    def rows(self) -> list[dict]:
        return read_jsonl(self.out / "scores.jsonl")


@pytest.fixture
def line(cookies: Path, inspector: Inspector, tmp_path: Path) -> Line:
    return Line(cookies / "cookie" / "test", inspector, tmp_path)


def test_a_part_is_inspected_once_it_has_stopped_changing(line: Line) -> None:
    line.bring("a")
    assert line.watch.look() == 0  # it may still be growing
    assert line.watch.look() == 1
    assert line.look(3) == 0  # once
    (one,) = line.rows
    assert one["name"] == "a"
    assert one["score"] == line.inspector(*_arrays(line, "good")).score
    assert one["seconds"] > 0
    assert (line.out / "overlays" / "a.png").is_file()
    (said,) = line.said
    assert said.startswith("a: score")
    (cells,) = csv.DictReader((line.out / "scores.csv").read_text().splitlines())
    assert float(cells["score"]) == one["score"]


def _arrays(line: Line, kind: str):
    from protoad.data import PartFiles, read_part

    folder = line.source / kind
    return read_part(PartFiles(folder / "rgb" / "000.png", folder / "xyz" / "000.tiff"))


def test_a_cut_file_is_waited_for(line: Line) -> None:
    line.bring("a", share=0.5)
    assert line.look(4) == 0
    assert line.said == []
    line.bring("a")
    assert line.look() == 1
    assert line.said[0].startswith("a: score")


def test_a_broken_file_is_set_aside_and_the_line_goes_on(line: Line) -> None:
    line.watch = line.begin(patience=0.0)
    line.bring("a", share=0.5)
    line.bring("b")
    assert line.look() == 2
    assert [one["name"] for one in line.rows] == ["b"]
    broken = line.folder / "broken"
    assert sorted(p.relative_to(broken).as_posix() for p in broken.rglob("*.*")) == ["a.txt", "rgb/a.png", "xyz/a.tiff"]
    assert "a.png" in (broken / "a.txt").read_text()
    assert line.said[0].startswith(f"a: set aside in {broken}: ")
    assert not (line.folder / "rgb" / "a.png").exists()
    line.bring("a")  # scanned again
    assert line.look() == 1


def test_a_broken_file_that_cannot_be_moved_is_passed_over(line: Line) -> None:
    line.watch = line.begin(patience=0.0)
    (line.folder / "broken").write_text("in the way")
    line.bring("a", share=0.5)
    assert line.look(4) == 1
    assert len(line.said) == 1
    assert "a: passed over" in line.said[0]
    assert (line.folder / "rgb" / "a.png").exists()


def test_a_late_half_is_waited_for_and_then_done_without(line: Line) -> None:
    line.bring("a", only="rgb")
    assert line.look(3) == 0
    line.watch = line.begin(patience=0.0)
    assert line.look() == 1
    assert "no depth" in line.said[-1]
    line.bring("a", only="xyz")  # here it comes after all
    assert line.look(3) == 1
    assert [one["condition"] for one in line.rows] == ["rgb, no depth", "rgb+normals"]
    (cells,) = csv.DictReader((line.out / "scores.csv").read_text().splitlines())
    assert cells["condition"] == "rgb+normals"


def test_where_no_depth_ever_comes_none_is_waited_for(line: Line) -> None:
    (line.folder / "xyz").rmdir()
    line.bring("a", only="rgb")
    assert line.look() == 1


def test_what_was_seen_is_not_seen_again_after_a_power_cut(line: Line) -> None:
    line.bring("a")
    line.bring("b")
    line.look(3)
    log = line.out / "scores.jsonl"
    log.write_bytes(log.read_bytes()[:-10])  # torn
    (line.out / "scores.csv").unlink()
    line.watch = line.begin(patience=0.0)
    assert line.look(3) == 1
    assert [one["name"] for one in line.rows] == ["a", "b"]
    assert len((line.out / "scores.csv").read_text().splitlines()) == 3
    os.utime(line.folder / "rgb" / "a.png", (1, 1))  # replaced
    assert line.look() == 1


def test_two_files_of_one_name_are_complained_of_once(line: Line) -> None:
    line.bring("a")
    shutil.copy(line.folder / "rgb" / "a.png", line.folder / "rgb" / "a.jpg")
    line.look(3)
    assert [text for text in line.said if "same name" in text] == line.said[:1]


def test_a_damaged_log_and_a_missing_folder_are_refused(line: Line) -> None:
    line.out.mkdir()
    (line.out / "scores.jsonl").write_text("{}\nno json\n")
    with pytest.raises(DataError, match=r"scores\.jsonl: line 2 is damaged"):
        line.begin(1.0)
    with pytest.raises(DataError, match="no such folder; make it, with rgb/ and xyz/"):
        Watch(line.inspector, line.folder / "gone", line.out)


def test_the_command_ends_when_idle(line: Line, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line.bring("a", kind="color")
    argv = ["watch", str(line.folder), "--checkpoint", str(calibrated), "--out", str(line.out)]
    assert main([*argv, "--interval", "0.01", "--until-idle", "0.05"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"watching {line.folder} for parts of cookie")
    assert "REJECT" in said[1]
