from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from protoad.errors import DataError
from protoad.metrics import DetectionMetrics
from protoad.report import append_jsonl, format_table, read_jsonl, summarise, write_csv, write_json, write_jsonl

NAN = float("nan")
PIRN = {
    "cookie": DetectionMetrics(0.5, 0.9, 0.8, 0.75),
    "cable_gland": DetectionMetrics(1.0, NAN, 0.6, NAN),
}


def test_summarise_takes_means_without_nan() -> None:
    result = summarise(PIRN)
    assert result["image_auroc"] == 0.75
    assert result["pixel_auroc"] == 0.9
    assert result["aupro"] == pytest.approx(0.7)
    assert result["f1_max"] == 0.75
    assert result["categories"]["cookie"] == {
        "image_auroc": 0.5, "pixel_auroc": 0.9, "aupro": 0.8, "f1_max": 0.75,
    }  # fmt: skip
    assert list(result) == ["image_auroc", "pixel_auroc", "aupro", "f1_max", "categories"]


def test_summarise_of_nothing_is_undefined() -> None:
    assert math.isnan(summarise({})["aupro"])
    assert math.isnan(summarise({"a": DetectionMetrics(NAN, NAN, NAN, NAN)})["f1_max"])


def test_table() -> None:
    table = format_table({"pirn": summarise(PIRN), "gaussian": summarise({"cookie": PIRN["cookie"]})})
    assert table.splitlines() == [
        "              pirn                              gaussian",
        "category      I-AUROC P-AUROC   AUPRO  F1-max   I-AUROC P-AUROC   AUPRO  F1-max",
        "-----------   -------------------------------   -------------------------------",
        "cookie          0.500   0.900   0.800   0.750     0.500   0.900   0.800   0.750",
        "cable_gland     1.000       -   0.600       -         -       -       -       -",
        "-----------   -------------------------------   -------------------------------",
        "mean            0.750   0.900   0.700   0.750     0.500   0.900   0.800   0.750",
    ]


def test_three_methods_fit_into_120_columns() -> None:
    results = {name: summarise(PIRN) for name in ("pirn", "nearest_neighbour", "gaussian")}
    lines = format_table(results).splitlines()
    assert max(map(len, lines)) <= 120
    assert len({len(line) for line in lines[1:]}) == 1


def test_table_with_odd_names_and_without_methods() -> None:
    long = "a method with a name that is longer than its four columns"
    lines = format_table({long: summarise(PIRN), "b": summarise(PIRN)}).splitlines()
    assert lines[0].index("b", lines[0].index(long) + len(long)) == lines[1].index("I-AUROC", 20)
    assert "mean" in format_table({})


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, {"z": summarise(PIRN), "a": [np.float32(0.5), np.int64(3), (1, True, None)], "m": PIRN["cookie"]})
    data = json.loads(path.read_text())
    assert list(data) == ["a", "m", "z"]
    assert data["a"] == [0.5, 3, [1, True, None]]
    assert data["m"]["aupro"] == 0.8
    assert data["z"]["categories"]["cable_gland"]["pixel_auroc"] is None
    assert data["z"]["image_auroc"] == 0.75
    assert "  -" in format_table({"z": data["z"]})
    assert path.read_bytes().endswith(b"}\n")
    first = path.read_bytes()
    write_json(path, {"m": PIRN["cookie"], "a": data["a"], "z": data["z"]})
    assert path.read_bytes() == first


@pytest.mark.parametrize("bad", [math.inf, np.float64(-np.inf), object(), {1: 2}, np.array([np.inf])])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    with pytest.raises(DataError, match="JSON"):
        write_json(path, {"new": bad})
    assert json.loads(path.read_text()) == {"old": 1}


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, [{"name": "a,b", "score": 0.1 + 0.2}, {"name": "ä", "score": NAN, "more": np.float32("nan")}])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"name": "a,b", "score": "0.30000000000000004", "more": ""},
        {"name": "ä", "score": "", "more": ""},
    ]


def test_interrupted_writing_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("interrupted")

    path = tmp_path / "rows.csv"
    write_csv(path, [{"a": 1}])
    with pytest.raises(RuntimeError, match="interrupted"):
        write_csv(path, [{"a": 2}, {"a": Broken()}])
    assert path.read_text() == "a\n1\n"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"results\.json: cannot be written"):
        write_json(tmp_path / "file" / "results.json", {})


def test_json_lines_can_be_written_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"name": "ü\n", "score": NAN, "where": (1, 2)})
    append_jsonl(path, {"name": "b", "score": np.float32(0.5)})
    rows = [{"name": "ü\n", "score": None, "where": [1, 2]}, {"name": "b", "score": 0.5}]
    assert read_jsonl(path) == rows
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows
    write_jsonl(tmp_path / "whole.jsonl", rows)
    assert (tmp_path / "whole.jsonl").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("torn", ["{", "x" * 10_000, '{"name": "lost"}'])
def test_a_torn_line_is_not_there_and_not_in_the_way(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "rows.jsonl"
    for before in ([], [{"name": "a"}]):
        write_jsonl(path, before)
        with path.open("a") as file:
            file.write(torn)
        assert read_jsonl(path) == before
        append_jsonl(path, {"name": "b"})
        assert read_jsonl(path) == [*before, {"name": "b"}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for bad in ("no json", "[1]", "3"):
        path.write_text(f'{{"name": "a"}}\n{bad}\n{{"name": "b"}}\n')
        with pytest.raises(DataError, match=r"rows\.jsonl: line 2 is damaged, expected a JSON object"):
            read_jsonl(path)
    with pytest.raises(DataError, match="cannot be written"):
        append_jsonl(path / "below a file", {})
