"""HTML reports of detect and evaluate: what is in them, and that it is what the tables say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pirn.cli import main

from protoad.report import read_jsonl


def _figures(page: str, name: str) -> str:
    """The text of the row of a part."""
    row = page[page.index(f">{name}<") :]
    return re.sub(r"<[^>]+>", " ", row[: row.index("<img")])


def test_detect_reports_every_part_with_its_decision(cookies: Path, calibrated: Path, tmp_path: Path) -> None:
    argv = ["detect", "--checkpoint", str(calibrated), "--root", str(cookies), "--out", str(tmp_path)]
    assert main(argv) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = read_jsonl(tmp_path / "scores.jsonl")
    assert len(rows) == 8
    for row in rows:
        text = _figures(page, row["name"])
        assert f"{row['score']:.4g}"[:4] in text
        assert ("reject" in text) == row["reject"]
        assert "rgb+normals" in text
    assert "at most 0.2 of them" in page
    assert "5 good parts (split)" in page


def test_evaluate_reports_the_metrics_of_its_table(cookies: Path, calibrated: Path, tmp_path: Path) -> None:
    argv = ["evaluate", "--checkpoint", str(calibrated), "--root", str(cookies), "--out", str(tmp_path)]
    assert main([*argv, "--json", str(tmp_path / "metrics.json")]) == 0
    page = (tmp_path / "cookie.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", page)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for method, values in metrics.items():
        assert method in text
        for name in ("image_auroc", "pixel_auroc", "aupro", "f1_max"):
            assert f"{values[name]:.3f}" in text
    assert f"ROC (area {metrics['pirn']['image_auroc']:.3f})" in text
    assert f"PRO (area {metrics['pirn']['aupro']:.3f})" in text
    assert "test/color/000" in text


def test_an_uncalibrated_detector_decides_nothing(cookies: Path, calibrated: Path, tmp_path: Path) -> None:
    from pirn import PIRNDetector

    pirn = PIRNDetector.load(calibrated / "cookie")
    pirn.calibrations = {}
    pirn.save(tmp_path / "plain")
    argv = ["--checkpoint", str(tmp_path / "plain"), "--root", str(cookies), "--out", str(tmp_path / "out")]
    assert main(["detect", *argv]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "none; not calibrated" in page
    assert "accept" not in _figures(page, "test_good_000")
    assert all(row["reject"] is None for row in read_jsonl(tmp_path / "out" / "scores.jsonl"))
    assert main(["evaluate", *argv, "--no-yardsticks"]) == 0
    assert "none; not calibrated" in (tmp_path / "out" / "cookie.html").read_text(encoding="utf-8")
