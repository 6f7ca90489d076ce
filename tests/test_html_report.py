from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import runpy
import shutil
import subprocess
import tracemalloc
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protoad.errors import DataError, ShapeError
from protoad.html_report import Curve, HTMLReport

ROOT = Path(__file__).resolve().parents[1]
Image = pytest.importorskip("PIL.Image")

EVIL = "<script>alert(\"1\")</script> & 'quoted' <img src=x onerror=alert(1)> Bürste 刷子"
VOID = {"meta", "link", "input", "img"}


class Tree(HTMLParser):
    """Reads a report strictly: every element is closed in order. Keeps the attributes and the texts of all elements."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict, list[str]]] = []
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        assert len(dict(attributes)) == len(attributes), f"{tag} has an attribute twice"
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag: str, css: str = "") -> list[tuple[dict, str]]:
        """Attributes and text of the elements with a tag and a class."""
        return [
            (attributes, "".join(texts).strip())
            for name, attributes, texts in self.elements
            if name == tag and (not css or css in (attributes.get("class") or "").split())
        ]

    def texts(self, tag: str, css: str = "") -> list[str]:
        return [text for _, text in self.all(tag, css)]


def picture(seed: int = 0, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def content_of(report: HTMLReport, folder: Path, **rest: object) -> str:
    report.write(folder / "report.html", **rest)  # type: ignore[arg-type]
    return (folder / "report.html").read_bytes().decode()


def table_of(content: str, heading: str) -> list[list[str]]:
    """Texts of the cells of the table under a heading."""
    tree = Tree(content.split(f"<h2>{heading}</h2>")[1].split("</table>")[0] + "</table></div>")
    cells, rows = iter([e for e in tree.elements if e[0] in ("th", "td")]), []
    width = sum(attributes.get("scope") == "col" for _, attributes, _ in tree.elements)
    for first in cells:
        rows.append([("".join(cell[2])) for cell in (first, *(next(cells) for _ in range(width - 1)))])
    return rows


def labelled_report(**settings: object) -> HTMLReport:
    """Three good parts and four defective ones of two kinds, threshold 2."""
    report = HTMLReport("Bolts", threshold=2.0, **settings)  # type: ignore[arg-type]
    for name, score, defect in [
        ("good/2", 1.0, "good"),
        ("good/10", 2.0, "good"),
        ("good/1", 3.0, "good"),
        ("bent/1", 2.5, "bent"),
        ("bent/2", 1.0, "bent"),
        ("scratch/1", 8.0, "scratch"),
        ("scratch/2", 4.0, "scratch"),
    ]:
        report.add_part(
            name,
            score,
            pictures={"colour": picture(), "scores": picture(1)},
            label=int(defect != "good"),
            defect=defect,
        )
    return report


def test_kinds_of_defects_against_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    content = content_of(labelled_report(), tmp_path)
    # AUROC: pairs (defective, good) won, ties half. bent: 2.5 beats 1 and 2, 1 ties with 1 -> 2.5 of 6.
    assert table_of(content, "Kinds of defects") == [
        ["kind", "parts", "rejected", "mean score", "lowest", "highest", "image AUROC"],
        ["good", "3", "1 of 3 (33%)", "2.000", "1.000", "3.000", "-"],
        ["bent", "2", "1 of 2 (50%)", "1.750", "1.000", "2.500", "0.417"],
        ["scratch", "2", "2 of 2 (100%)", "6.000", "4.000", "8.000", "1.000"],
        ["all defects", "4", "3 of 4 (75%)", "3.875", "1.000", "8.000", "0.708"],
    ]
    assert Tree(content).texts("li") == [
        "7parts",
        "4 of 7 (57%)rejected",
        "1 of 4 (25%)defective parts missed",
        "1 of 3 (33%)good parts rejected",
    ]


def test_parts_stand_from_the_highest_score_down_with_what_is_known_of_them(tmp_path: Path) -> None:
    tree = Tree(content_of(labelled_report(), tmp_path))
    assert tree.texts("td", "name") == ["scratch/1", "scratch/2", "good/1", "bent/1", "good/10", "good/2", "bent/2"]
    assert tree.texts("td", "kind") == ["scratch", "scratch", "good", "bent", "good", "good", "bent"]
    assert tree.texts("td", "verdict") == [
        "reject",
        "reject",
        "reject false reject",
        "reject",
        *["accept"] * 2,
        "accept missed",
    ]
    assert [a["class"] for a, _ in tree.all("tbody") if "class" in a] == [
        "rejected", "rejected", "rejected false-reject", "rejected", "", "", "missed"
    ]  # fmt: skip
    assert [a.get("aria-sort") for a, _ in tree.all("th", "score")] == ["descending"]
    assert tree.texts("button")[:4] == ["all (7)", "rejected (4)", "missed (1)", "false rejects (1)"]
    assert tree.texts("figcaption")[-2:] == ["colour", "scores"]


def test_a_given_decision_outweighs_the_threshold(tmp_path: Path) -> None:
    report = HTMLReport("x", threshold=1.0)
    report.add_part("a", 0.5, pictures={}, reject=True, p_value=0.0125)
    report.add_part("b", 1.5, pictures={}, reject=np.bool_(False), p_value=1)
    report.add_part("c", 1.25, pictures={})
    tree = Tree(content_of(report, tmp_path))
    assert tree.texts("td", "verdict") == ["accept", "reject", "reject"]
    assert [text for a, text in tree.all("td") if a.get("data-label") == "p-value"] == ["1", "-", "0.0125"]
    assert [a["data-key"] for a, _ in tree.all("td") if a.get("data-label") == "p-value"] == ["1.0", "", "0.0125"]


def test_details_become_columns_of_numbers_or_texts(tmp_path: Path) -> None:
    report = HTMLReport("x")
    report.add_part("a", 2.0, pictures={}, details={"regions": 12345, "score": 0.5, "mixed": 1, "peak": "3, 4"})
    report.add_part("b", 1.0, pictures={}, details={"regions": np.int64(2), "score": np.float32("nan"), "mixed": "x"})
    tree = Tree(content_of(report, tmp_path))
    assert tree.texts("th") == ["part", "score", "regions", "score", "mixed", "peak"]
    assert [a["data-sort"] for a, _ in tree.all("th")] == ["text", *["number"] * 3, "text", "text"]
    assert sum("aria-sort" in a for a, _ in tree.all("th")) == 1
    assert tree.texts("td") == ["a", "2.000", "12345", "0.5000", "1", "3, 4", "b", "1.000", "2", "-", "x", "-"]


def test_all_text_is_text(tmp_path: Path) -> None:
    report = HTMLReport(EVIL, facts={EVIL: EVIL}, threshold=1.0, other_thresholds={EVIL: 1.5})
    report.add_part(EVIL, 2.0, pictures={EVIL: picture()}, label=1, defect=EVIL, details={EVIL: EVIL})
    curve = Curve(EVIL, np.array([0.0, 1.0]), np.array([0.0, 1.0]), EVIL, EVIL)
    content = content_of(report, tmp_path, curves=[curve], metrics={EVIL: {EVIL: 0.5}})
    tree = Tree(content)
    assert content.count("<script>") == 1
    assert len(tree.all("img")) == 1
    for tag in ("title", "h1", "dt", "dd", "td", "th", "figcaption", "text"):
        assert any(EVIL in text for text in tree.texts(tag)), tag
    assert tree.all("img")[0][0]["alt"] == EVIL
    assert not any(
        name.startswith("on") or name == "style" for _, attributes, _ in tree.elements for name in attributes
    )


@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_any_name_comes_back_as_it_was_but_for_what_html_cannot_hold(name: str) -> None:
    from protoad._svg import escaped

    shown = escaped(name)
    read = html.unescape(shown)
    shown.encode()
    assert len(read) == len(name)
    for before, after in zip(name, read, strict=True):
        assert after == before or (after == "\N{REPLACEMENT CHARACTER}" and not before.isprintable())
    assert not set(shown) & set("<>\"'\r\0")


def test_nothing_is_fetched_and_nothing_foreign_runs(tmp_path: Path) -> None:
    content = content_of(labelled_report(), tmp_path)
    tree = Tree(content)
    assert set(re.findall(r"https?://[^\s\"'<>]*", content)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", content)
    addresses = [a[name] for _, a, _ in tree.elements for name in ("src", "href", "action", "data") if name in a]
    assert all(address.startswith("data:") for address in addresses)
    ((policy, _),) = [e for e in tree.all("meta") if e[0].get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for rule, tag in {"style-src": "style", "script-src": "script"}.items():
        (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
    # the rule stands before anything it is to hold for
    assert content.index("Content-Security-Policy") < content.index("<style>")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    curve = Curve("ROC", np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.75, 1.0]))
    contents = {content_of(labelled_report(facts={"b": "1", "a": "2"}), tmp_path, curves=[curve]) for _ in range(2)}
    assert len(contents) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert b"\r" not in (tmp_path / "report.html").read_bytes()


def test_pictures_are_reduced_and_take_the_smaller_format(tmp_path: Path) -> None:
    mask = np.zeros((500, 1000, 3), np.uint8)
    mask[100:300, 200:300] = 255
    smooth = np.repeat(np.linspace(0, 255, 300).astype(np.uint8)[:, None, None], 300, axis=1).repeat(3, axis=2)
    noisy = np.clip(smooth + np.random.default_rng(0).normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
    report = HTMLReport("x", picture_size=100)
    report.add_part(
        "a", 1.0, pictures={"mask": mask, "photo": noisy, "small": picture(size=(10, 20)), "line": mask[:1]}
    )
    images = {a["alt"]: a for a, _ in Tree(content_of(report, tmp_path)).all("img")}
    decoded = {name: Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))) for name, a in images.items()}
    assert {name: image.size for name, image in decoded.items()} == {
        "mask": (100, 50), "photo": (100, 100), "small": (20, 10), "line": (100, 1)
    }  # fmt: skip
    assert {name: (int(a["width"]), int(a["height"])) for name, a in images.items()} == {
        name: image.size for name, image in decoded.items()
    }
    assert (decoded["mask"].format, decoded["photo"].format) == ("PNG", "JPEG")
    assert images["mask"]["src"].startswith("data:image/png;base64,")
    assert np.asarray(decoded["mask"])[20, 25].tolist() == [255] * 3  # (200, 250) of the large one
    assert np.asarray(decoded["mask"])[20, 35].tolist() == [0] * 3
    assert abs(float(np.asarray(decoded["photo"])[50].mean()) - 127) < 6


def test_two_hundred_parts_fit_into_twenty_megabytes_and_large_pictures_are_not_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grain = np.cumsum(np.cumsum(rng.normal(0, 1, (700, 700, 3)), 0), 1)
    photo = np.clip(128 + 60 * grain / grain.std() + rng.normal(0, 4, grain.shape), 0, 255).astype(np.uint8)
    report = HTMLReport("x")
    tracemalloc.start()
    try:
        for index in range(5):
            report.add_part(str(index), index, pictures={str(k): np.roll(photo, k + index, axis=1) for k in range(4)})
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = len(content_of(report, tmp_path))
    assert size * 40 < 20e6
    assert kept < 2 * size + 1e6  # four large pictures alone are 5.9 MB


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, np.float32("nan"), 1e305])
def test_a_score_that_is_none_is_refused(score: float) -> None:
    report = HTMLReport("x")
    with pytest.raises(DataError, match="score of 'bolt 7': expected a finite number"):
        report.add_part("bolt 7", score, pictures={})


@pytest.mark.parametrize("threshold", [math.nan, -math.inf, 1e305])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    with pytest.raises(DataError, match="threshold: expected a number, or infinity"):
        HTMLReport("x", threshold=threshold)
    with pytest.raises(DataError, match="best: expected a number"):
        HTMLReport("x", other_thresholds={"best": threshold})


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"label": 2}, DataError, "label of 'a': expected 0"),
        ({"label": "good"}, DataError, "label of 'a'"),
        ({"p_value": 1.5}, DataError, "p-value of 'a'"),
        ({"p_value": math.nan}, DataError, "p-value of 'a'"),
        ({"pictures": {"map": np.zeros((4, 4), np.uint8)}}, ShapeError, r"map of 'a': .*\(y x 3\), got \(4, 4\)"),
        ({"pictures": {"map": np.zeros((0, 4, 3), np.uint8)}}, ShapeError, "map of 'a'"),
        ({"pictures": {"map": np.zeros((4, 4, 3))}}, DataError, "map of 'a': .*uint8, got float64"),
    ],
)
def test_bad_parts_are_one_sentence_and_leave_no_trace(
    wrong: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    report = HTMLReport("x")
    with pytest.raises(error, match=message):
        report.add_part("a", 1.0, **{"pictures": {}, **wrong})
    assert "There are no parts" in content_of(report, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": np.zeros(3)}, ShapeError, "ROC: expected x and y of one length"),
        ({"x": np.zeros(1), "y": np.zeros(1)}, ShapeError, "2 or more"),
        ({"x": np.array([0.0, 1.5])}, DataError, r"x: expected rates in \[0, 1\], got 1.5"),
        ({"y": np.array([0.0, math.nan])}, DataError, "y: expected rates.*nan"),
        ({"point": (-0.5, 0.0)}, DataError, "point: expected rates.*-0.5"),
        ({"x": np.array([1.0, 0.0])}, DataError, "never fall"),
        ({"x_limit": 0.0}, DataError, "x_limit"),
    ],
)
def test_bad_curves_are_one_sentence(wrong: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Curve(**{"title": "ROC", "x": np.array([0.0, 1.0]), "y": np.array([0.0, 1.0]), **wrong})


def test_no_parts(tmp_path: Path) -> None:
    tree = Tree(content_of(HTMLReport("Nothing"), tmp_path))
    assert tree.texts("p") == ["There are no parts."]
    assert tree.texts("li") == ["0parts"]
    assert not tree.all("svg")
    assert not tree.all("table")


def test_infinite_threshold_rejects_nothing_and_says_why(tmp_path: Path) -> None:
    report = HTMLReport("x", threshold=math.inf)
    report.add_part("a", 1e200, pictures={}, label=1)
    tree = Tree(content_of(report, tmp_path))
    assert tree.texts("td", "verdict") == ["accept missed"]
    assert "infinite" in tree.texts("p", "remark")[0]
    assert not tree.all("path", "threshold")


def test_labels_of_one_class_leave_auroc_undefined(tmp_path: Path) -> None:
    for label, kind in ((0, "good"), (1, "dent")):
        report = HTMLReport("x")
        report.add_part("a", 1.0, pictures={}, label=label, defect="dent")
        assert table_of(content_of(report, tmp_path), "Kinds of defects")[1:] == [
            [kind, "1", "-", "1.000", "1.000", "1.000", "-"]
        ]


def test_without_labels_there_are_no_kinds(tmp_path: Path) -> None:
    report = HTMLReport("x", threshold=0.5)
    report.add_part("a", 1.0, pictures={})
    tree = Tree(content_of(report, tmp_path))
    assert tree.texts("h2") == ["Parts", ""]  # and the viewer's
    assert tree.texts("th") == ["part", "score", "decision"]
    assert tree.texts("button")[:2] == ["all (1)", "rejected (1)"]


def bars(content: str) -> list[tuple[str, float, float, float, float]]:
    """Kind, left, right, top, foot of the bars of the histogram."""
    found = re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)" class="bar (\w+)"><title>', content)
    return [(kind, float(x), float(x) + float(w), float(y), float(y) + float(h)) for x, y, w, h, kind in found]


@pytest.mark.parametrize("scale", [1.0, 1e-9, -3.0, 1e250])
@pytest.mark.parametrize("exponent", [1, 12])  # a linear axis and a logarithmic one
def test_bars_right_of_the_threshold_are_the_rejected_parts(tmp_path: Path, scale: float, exponent: int) -> None:
    rng = np.random.default_rng(0)
    scores = scale * np.concatenate(
        [rng.uniform(0.5, 2, 40) ** exponent, [1.0, np.nextafter(1, 2), np.nextafter(1, 0)]]
    )
    report = HTMLReport("x", threshold=scale)
    for index, score in enumerate(scores):
        report.add_part(str(index), score, pictures={}, label=index % 2)
    content = content_of(report, tmp_path)
    line = float(re.search(r'<path d="M(\S+) \S+" class="threshold"', content)[1])  # type: ignore[index]
    found = bars(content)
    counted = int(re.search(r"<title>(\d+) (?:good|defective)</title>", content)[1])  # type: ignore[index]
    unit = (found[0][4] - found[0][3]) / counted
    for kind, label in {"good": 0, "defective": 1}.items():
        right = sum((foot - top) / unit for k, left, _, top, foot in found if k == kind and left > line - 0.2)
        left = sum((foot - top) / unit for k, _, right, top, foot in found if k == kind and right < line + 0.2)
        rejected = scores[label::2] > scale
        assert (round(right), round(left)) == (rejected.sum(), (~rejected).sum())
    for bin_left in {left for _, left, *_ in found}:  # bars of one bin stand on each other
        stack = sorted((foot, top) for _, left, _, top, foot in found if left == bin_left)
        assert stack[-1][0] == max(foot for *_, foot in found)
        assert all(below[1] == pytest.approx(above[0], abs=0.11) for above, below in pairwise(stack))
    assert ("logarithmic" in content) == (exponent == 12 and scale > 0)


@pytest.mark.parametrize(
    "scores",
    [
        *([2.5], [0.0], [2.5] * 3, [-7.0] * 2, [1e300, -1e300], [1, np.nextafter(1, 2)]),
        *([1e-300, 2e-300], [1e-200, 2e-200], [0, 5e-324], [1e17, 1e17 + 16], [1e-300, 1, 1e300]),
    ],
)
@pytest.mark.parametrize("threshold", [None, math.inf, 0.0, 1.0, 1e300, -1e300])
def test_any_scores_can_be_drawn(tmp_path: Path, scores: list[float], threshold: float | None) -> None:
    report = HTMLReport("x", threshold=threshold)
    for score in scores:
        report.add_part("a", score, pictures={})
    content = content_of(report, tmp_path)
    Tree(content)
    drawn = content.split("<svg")[1].split("</svg>")[0]
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert all(-1 <= left <= right <= 481 and -1 <= top <= foot <= 311 for _, left, right, top, foot in bars(content))
    assert len(re.findall(r"<text[^>]*text-anchor=\"middle\">[^<]*\d", drawn)) >= 2  # two numbers at the axis at least


def points(content: str) -> np.ndarray:
    drawn = re.search(r'<polyline points="([^"]*)"', content)[1]  # type: ignore[index]
    return np.array([[float(number) for number in point.split(",")] for point in drawn.split()])


def test_curves_are_drawn_to_scale_and_cut_at_the_limit(tmp_path: Path) -> None:
    report = HTMLReport("x")
    x, y = np.array([0.0, 0.0, 0.2, 0.4, 1.0]), np.array([0.0, 0.5, 0.6, 0.8, 1.0])
    content = content_of(report, tmp_path, curves=[Curve("PRO", x, y, area=0.875, x_limit=0.3, point=(0.2, 0.6))])
    drawn = points(content)
    axes = re.search(r'<path d="M(\S+) (\S+)V(\S+)H(\S+)" class="axis"', content)
    left, top, foot, right = map(float, axes.groups())  # type: ignore[union-attr]

    def at(u: float, v: float) -> list[float]:
        return [left + u / 0.3 * (right - left), foot + v * (top - foot)]

    assert drawn == pytest.approx(np.array([at(0, 0), at(0, 0.5), at(0.2, 0.6), at(0.3, 0.7)]), abs=0.06)
    ring = re.search(r'<circle cx="(\S+)" cy="(\S+)" r="5" class="ring"', content)
    assert [float(ring[1]), float(ring[2])] == pytest.approx(at(0.2, 0.6), abs=0.06)  # type: ignore[index]
    assert Tree(content).texts("figcaption") == ["PRO (area 0.875)"]


def test_a_curve_of_a_million_points_stays_small_and_in_place(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 1_000_001)
    content = content_of(HTMLReport("x"), tmp_path, curves=[Curve("ROC", x, np.sqrt(x), area=math.nan)])
    drawn = points(content)
    assert len(content) < 60_000
    assert "(area" not in content
    (left, foot), (right, top) = drawn[0], drawn[-1]
    across, up = (drawn[:, 0] - left) / (right - left), (foot - drawn[:, 1]) / (foot - top)
    assert np.abs(across - up**2).max() < 0.003
    assert np.hypot(*np.diff(drawn, axis=0).T).max() < 3  # units of 480: no corner is cut that an eye could see


def test_metrics_table(tmp_path: Path) -> None:
    metrics = {"ours": {"AUROC": 0.98765, "AUPRO": math.nan}, "bank": {"AUROC": 0.5, "F1": 1.0}}
    assert table_of(content_of(HTMLReport("x"), tmp_path, metrics=metrics), "Metrics") == [
        ["method", "AUROC", "AUPRO", "F1"],
        ["ours", "0.988", "-", "-"],
        ["bank", "0.500", "-", "1.000"],
    ]


def test_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"report\.html: cannot be written"):
        HTMLReport("x").write(tmp_path / "file" / "report.html")


def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "html_report.py"), run_name="__main__")
    tree = Tree((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(tree.texts("td", "name")) == 40


def test_page_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/report.md", "exec"), {})
    (written,) = tmp_path.glob("*.html")
    assert Tree(written.read_text(encoding="utf-8")).texts("td", "name")


# In a browser.

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the report in")

CLICKS = """
const done = {};
const order = () => [...document.querySelectorAll("#parts tbody:not([hidden]) .name")].map((cell) => cell.textContent);
const heading = (name) => [...document.querySelectorAll("#parts th")].find((cell) => cell.textContent === name);
const sorted = (name) => { heading(name).querySelector("button").click(); return [heading(name).ariaSort, order()]; };
const choose = (name) => {
  document.querySelector(`#tools button[value="${name}"]`).click();
  return [order(), document.getElementById("shown").textContent,
    [...document.querySelectorAll("#tools button[aria-pressed=true]")].map((button) => button.value)];
};
const type = (text) => {
  const search = document.getElementById("search");
  search.value = text;
  search.dispatchEvent(new Event("input"));
  return order();
};
const viewer = document.getElementById("viewer");
const view = () => [viewer.open, viewer.querySelector("h2").textContent, viewer.querySelectorAll("img").length];
const press = (key) => { viewer.dispatchEvent(new KeyboardEvent("keydown", { key })); return view()[1]; };
done.start = order();
for (const name of ["score", "p-value", "part", "kind", "regions"]) done[name] = [sorted(name), sorted(name)];
done.marks = document.querySelectorAll("#parts th[aria-sort]").length;
for (const name of ["rejected", "missed", "false-reject", ""]) done["choose " + name] = choose(name);
done.search = [type(" SCRATCH "), type("ood/1"), type("scratch/1"), type("<script>"), type("nowhere"), type("")];
choose("rejected");
done.both = type("bent");
type("");
document.querySelector("#parts tbody:not([hidden]) .pictures button").click();
done.viewer = [view(), ...["ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"].map(press)];
document.querySelector("#viewer [value=next]").click();
done.viewer.push(view()[1]);
document.querySelector("#viewer [value=back]").click();
done.viewer.push(view()[1]);
document.querySelector("#viewer [value=close]").click();
done.viewer.push(viewer.open);
done.buttons = [...document.querySelectorAll("button")].every((button) => button.type === "button");
done.pictures = [...document.images].every((image) => image.complete && image.naturalWidth > 0);
const result = document.createElement("pre");
result.id = "result";
result.textContent = JSON.stringify(done);
document.body.append(result);
"""


def in_browser(content: str, folder: Path, script: str = "") -> tuple[str, list[str]]:
    """What stands in the page once it is loaded, and what the browser complained of.

    The script runs after the report's own; the page's rules are widened by its hash and nothing else.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = content.replace("script-src ", f"script-src 'sha256-{digest}' ", 1) if script else content
    page = folder / "page.html"
    page.write_text(content.replace("</body>", f"<script>{script}</script></body>") if script else content, "utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    )
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_the_page_as_written_pleases_the_browser(tmp_path: Path) -> None:
    content = content_of(labelled_report(), tmp_path)
    page, complaints = in_browser(content, tmp_path)
    assert complaints == []
    assert '<div id="tools" hidden' in content  # useless, hence not shown, before the script has run
    assert '<div id="tools">' in page


@needs_browser
def test_the_browser_would_complain_of_anything_foreign(tmp_path: Path) -> None:
    """Else the test above would pass whatever the page does."""
    content = content_of(labelled_report(), tmp_path)
    planted = '<p style="color: red"><img src="http://127.0.0.1:9/x.png"></p><script>document.title = "run"</script>'
    page, complaints = in_browser(content.replace("</main>", f"{planted}</main>"), tmp_path)
    for rule in ("style-src", "img-src", "script-src"):
        assert any(rule in line for line in complaints), rule
    assert "<title>Bolts</title>" in page


@needs_browser
def test_sorting_filtering_and_enlarging_in_a_browser(tmp_path: Path) -> None:
    report = HTMLReport("Bolts", threshold=2.0)
    for name, score, defect, p_value, regions in [
        ("good/2", 1.0, "good", None, 10),
        ("good/10", 3.0, "good", 0.25, 9),
        ("bent/1", 2.5, "bent", 0.05, 100),
        ("Scratch/1", 8.0, "scratch", None, 2),
        ("scratch/2", 1.5, "scratch", 1.0, 3),
        ("<script>", 7.99999, "scratch", 0.0625, 0),
    ]:
        report.add_part(
            name,
            score,
            pictures={"colour": picture(), "scores": picture(1)} if name != "bent/1" else {},
            label=int(defect != "good"),
            defect=defect,
            p_value=p_value,
            details={"regions": regions},
        )
    page, complaints = in_browser(content_of(report, tmp_path), tmp_path, CLICKS)
    assert complaints == []
    done = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', page, re.DOTALL)[1]))  # type: ignore[index]
    by_score = ["Scratch/1", "<script>", "good/10", "bent/1", "scratch/2", "good/2"]
    assert done["start"] == by_score
    assert done["score"] == [["ascending", by_score[::-1]], ["descending", by_score]]
    by_name = ["<script>", "bent/1", "good/2", "good/10", "Scratch/1", "scratch/2"]  # 2 before 10
    assert done["part"] == [["ascending", by_name], ["descending", by_name[::-1]]]
    assert done["kind"][0][1] == ["bent/1", "good/10", "good/2", "scratch/2", "Scratch/1", "<script>"]  # stable
    by_p_value, unknown = ["scratch/2", "good/10", "<script>", "bent/1"], ["Scratch/1", "good/2"]  # as they stood
    assert [order for _, order in done["p-value"]] == [[*by_p_value, *unknown], [*by_p_value[::-1], *unknown]]
    by_regions = ["bent/1", "good/2", "good/10", "scratch/2", "Scratch/1", "<script>"]  # as numbers, not as texts
    assert done["regions"] == [["descending", by_regions], ["ascending", by_regions[::-1]]]
    assert done["marks"] == 1
    now = by_regions[::-1]
    rejected = ["<script>", "Scratch/1", "good/10", "bent/1"]
    assert done["choose rejected"] == [rejected, "4 of 6 parts", ["rejected"]]
    assert done["choose missed"] == [["scratch/2"], "1 of 6 parts", ["missed"]]
    assert done["choose false-reject"] == [["good/10"], "1 of 6 parts", ["false-reject"]]
    assert done["choose "] == [now, "6 of 6 parts", [""]]
    scratched = ["<script>", "Scratch/1", "scratch/2"]
    assert done["search"] == [scratched, ["good/10"], ["Scratch/1"], ["<script>"], [], now]
    assert done["both"] == ["bent/1"]
    assert done["viewer"][0] == [True, "<script>", 2]
    # over the parts that are shown, and round
    assert done["viewer"][1:6] == ["Scratch/1", "good/10", "Scratch/1", "<script>", "bent/1"]
    assert done["viewer"][6:] == ["<script>", "bent/1", False]
    assert done["buttons"]
    assert done["pictures"]
