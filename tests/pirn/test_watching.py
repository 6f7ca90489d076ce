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

from protoad import ConfigError, DataError
from protoad.data import write_rgb
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
        return read_jsonl(self.out / "watch.jsonl")


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


def test_a_half_in_a_format_that_is_not_read_is_not_missing(line: Line) -> None:
    """A part must not be judged by colour alone because its points came as an STL file."""
    line.watch = line.begin(patience=0.0)
    line.bring("a", only="rgb")
    (line.folder / "xyz" / "a.stl").write_text("solid")
    assert line.look() == 1
    assert line.rows == []
    assert "a.stl: is of no format that points are read from" in (line.folder / "broken" / "a.txt").read_text()


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
    log = line.out / "watch.jsonl"
    log.write_bytes(log.read_bytes()[:-10])  # torn
    (line.out / "scores.csv").unlink()
    line.watch = line.begin(patience=0.0)
    assert line.look(3) == 1
    assert [one["name"] for one in line.rows] == ["a", "b"]
    assert len((line.out / "scores.csv").read_text().splitlines()) == 3
    os.utime(line.folder / "rgb" / "a.png", (1, 1))  # replaced
    assert line.look() == 1


def test_what_is_taken_away_is_no_news(line: Line) -> None:
    line.watch = line.begin(patience=0.0)
    line.bring("a")
    assert line.look() == 1
    (line.folder / "xyz" / "a.tiff").unlink()
    assert line.look(3) == 0
    assert len(line.rows) == 1


def test_another_broken_part_of_the_same_name_is_kept_too(line: Line) -> None:
    line.watch = line.begin(patience=0.0)
    for share in (0.5, 0.6):
        line.bring("a", share=share)
        assert line.look() == 1
    names = sorted(path.name for path in (line.folder / "broken").rglob("*.*"))
    assert names == ["a-2.png", "a-2.tiff", "a-2.txt", "a.png", "a.tiff", "a.txt"]


def test_a_full_disk_is_waited_for(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, picture: object) -> None:
        raise DataError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("pirn.watching.write_rgb", full)
    line.bring("a")
    assert line.look(4) == 0
    assert len(line.said) == 1
    assert "No space left on device" in line.said[0]
    monkeypatch.setattr("pirn.watching.write_rgb", write_rgb)
    assert line.look(1) == 1
    assert len(line.rows) == 1


def test_two_files_of_one_name_are_complained_of_once(line: Line) -> None:
    line.bring("a")
    shutil.copy(line.folder / "rgb" / "a.png", line.folder / "rgb" / "a.jpg")
    line.look(3)
    assert [text for text in line.said if "same name" in text] == line.said[:1]


def test_a_damaged_log_and_a_missing_folder_are_refused(line: Line) -> None:
    line.out.mkdir()
    log = line.out / "watch.jsonl"
    for text, message in (
        ("{}\nno json\n", "line 2 is damaged"),
        ('{"name": "a"}\n', "line 1 is no line of pirn watch"),
    ):
        log.write_text(text)
        with pytest.raises(DataError, match=message):
            line.begin(1.0)
    log.unlink()
    with pytest.raises(ConfigError, match="patience: expected seconds, 0 or more, got -1"):
        line.begin(-1.0)
    with pytest.raises(ConfigError, match="interval: expected seconds"):
        line.watch.run(interval=-1.0)
    with pytest.raises(DataError, match="no such folder; make it, with rgb/ and xyz/"):
        Watch(line.inspector, line.folder / "gone", line.out)


def test_the_command_ends_when_idle(line: Line, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line.bring("a", kind="color")
    argv = ["watch", str(line.folder), "--checkpoint", str(calibrated), "--out", str(line.out)]
    assert main([*argv, "--interval", "0.01", "--until-idle", "0.05"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"watching {line.folder} for parts of cookie")
    assert "REJECT" in said[1]
