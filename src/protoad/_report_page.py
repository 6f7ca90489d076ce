"""The HTML of the report, piece by piece. Style and script are the files beside this one."""

from __future__ import annotations

import base64
import hashlib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from protoad._svg import escaped, histogram
from protoad.metrics import image_auroc

__all__ = ["Part", "Picture", "page"]

_SCORE = "number score"  # CSS class of the column by which the parts are sorted at first
_FILTERS = {"": "all", "rejected": "rejected", "missed": "missed", "false-reject": "false rejects"}


class Picture(NamedTuple):
    """An encoded picture and its size in pixels."""

    title: str
    uri: str
    width: int
    height: int


class Part(NamedTuple):
    """One inspected part; what nobody knows is None."""

    name: str
    score: float
    defective: bool | None
    defect: str
    p_value: float | None
    rejected: bool | None
    details: Mapping[str, object]
    pictures: Sequence[Picture]

    @property
    def kind(self) -> str | None:
        """Kind of the defect, "good", or None."""
        return {None: None, False: "good", True: self.defect}[self.defective]

    @property
    def states(self) -> list[str]:
        """The filters that show it."""
        wrong = self.defective is not None and self.rejected is (not self.defective)
        mistake = ["missed" if self.defective else "false-reject"] if wrong else []
        return (["rejected"] if self.rejected else []) + mistake


class _Column(NamedTuple):
    """A column of the table of parts."""

    heading: str
    css: str
    numeric: bool
    value: Callable[[Part], Any]
    show: Callable[[Any], str]


def page(
    title: str,
    facts: Mapping[str, str],
    parts: Sequence[Part],
    thresholds: Mapping[str, float],
    metrics: Mapping[str, Mapping[str, float]],
    charts: Sequence[tuple[str, str]],
) -> Iterator[str]:
    """Gives the pieces of the file; charts are captions and SVG."""
    style, script = (
        resources.files("protoad").joinpath(f"_report_page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    # Nothing may be loaded or run but what stands in this file: pictures in it, and this one style and script.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escaped(title)}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n<body>\n'
        f"<header>\n<h1>{escaped(title)}</h1>\n{_facts(facts)}{_counts(parts)}{_remark(thresholds)}</header>\n<main>\n"
    )
    yield _charts([*_scores_chart(parts, thresholds), *charts])
    yield _metrics(metrics)
    yield _kinds(parts)
    yield from _gallery(parts)
    yield f"</main>\n<script>{script}</script>\n</body>\n</html>\n"


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>\n" for name, value in facts.items())
    return f'<dl class="facts">\n{items}</dl>\n' if items else ""


def _counts(parts: Sequence[Part]) -> str:
    """What an inspector asks first."""
    decided = [part for part in parts if part.rejected is not None]
    defective, good = ([part for part in decided if part.defective is label] for label in (True, False))
    items = f"<li><b>{len(parts)}</b>parts</li>\n"
    for text, state, those in (
        ("rejected", "rejected", decided),
        ("defective parts missed", "missed", defective),
        ("good parts rejected", "false-reject", good),
    ):
        if those:
            items += f"<li><b>{_share(those, state)}</b>{text}</li>\n"
    return f'<ul class="counts">\n{items}</ul>\n'


def _remark(thresholds: Mapping[str, float]) -> str:
    if thresholds.get("threshold") != math.inf:
        return ""
    return (
        '<p class="remark">The threshold is infinite, and no score is above it: calibration had too few good parts for '
        "the false reject rate asked for.</p>\n"
    )


def _scores_chart(parts: Sequence[Part], thresholds: Mapping[str, float]) -> list[tuple[str, str]]:
    groups = {}
    for name, label in {"good": False, "defective": True, "unlabelled": None}.items():
        scores = [part.score for part in parts if part.defective is label]
        if scores:
            groups[name] = np.array(scores)
    lines = {f"{name} {_number(at)}": at for name, at in thresholds.items() if math.isfinite(at)}
    return [("Scores", histogram(groups, lines))] if groups else []


def _charts(charts: Sequence[tuple[str, str]]) -> str:
    figures = "".join(f"<figure><figcaption>{escaped(text)}</figcaption>{svg}</figure>\n" for text, svg in charts)
    return f'<section class="charts">\n{figures}</section>\n' if figures else ""


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    if not metrics:
        return ""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [[method, *(_rate(values.get(name)) for name in names)] for method, values in metrics.items()]
    return f"<h2>Metrics</h2>\n{_table(['method', *names], rows)}"


def _kinds(parts: Sequence[Part]) -> str:
    """Each kind of defect: how many were found, their scores, and how these stand out from the good ones."""
    good, defective = ([part for part in parts if part.defective is label] for label in (False, True))
    kinds = sorted({part.defect for part in defective})
    groups = [(kind, [part for part in defective if part.defect == kind]) for kind in kinds]
    if len(kinds) > 1:
        groups.append(("all defects", defective))
    rows = [[kind, *_figures(those, _auroc(those, good))] for kind, those in groups]
    if good:
        rows.insert(0, ["good", *_figures(good, math.nan)])
    headings = ["kind", "parts", "rejected", "mean score", "lowest", "highest", "image AUROC"]
    return f"<h2>Kinds of defects</h2>\n{_table(headings, rows)}" if rows else ""


def _figures(parts: Sequence[Part], auroc: float) -> list[str]:
    scores = np.array([part.score for part in parts])
    decided = [part for part in parts if part.rejected is not None]
    return [
        str(len(parts)),
        _share(decided, "rejected") if decided else "-",
        *(_number(float(score)) for score in (scores.mean(), scores.min(), scores.max())),
        _rate(auroc),
    ]


def _auroc(defective: Sequence[Part], good: Sequence[Part]) -> float:
    """Image AUROC of these against the good parts; NaN without good parts."""
    scores = np.array([part.score for part in (*defective, *good)])
    return image_auroc(scores, np.arange(len(scores)) < len(defective))


def _gallery(parts: Sequence[Part]) -> Iterator[str]:
    """All parts, from the highest score down."""
    yield "<h2>Parts</h2>\n"
    if not parts:
        yield "<p>There are no parts.</p>\n"
        return
    columns = _columns(parts)
    headings = "".join(_heading(column) for column in columns)
    # Roles: a narrow screen shows the table as blocks, and browsers then forget that it is one.
    yield (
        f'{_tools(parts)}<table id="parts" role="table">\n'
        f'<thead role="rowgroup"><tr role="row">{headings}</tr></thead>\n'
    )
    for part in sorted(parts, key=lambda part: -part.score):
        cells = "".join(_cell(column, part) for column in columns)
        yield (
            f'<tbody role="rowgroup" class="{" ".join(part.states)}"><tr role="row">{cells}</tr>\n'
            f"{_pictures(part, len(columns))}</tbody>\n"
        )
    yield (
        '</table>\n<dialog id="viewer" aria-label="Enlarged pictures">\n<nav>'
        '<button type="button" value="back">← previous</button><button type="button" value="next">next →</button>'
        '<button type="button" value="close">close</button></nav>\n<h2></h2>\n<p></p>\n<div class="pictures"></div>\n'
        "</dialog>\n"
    )


def _columns(parts: Sequence[Part]) -> list[_Column]:
    """The columns before the pictures, without those that would stay empty."""
    columns = [
        _Column("part", "name", False, lambda part: part.name, str),
        _Column("kind", "kind", False, lambda part: part.kind, str),
        _Column("score", _SCORE, True, lambda part: part.score, _number),
        _Column("p-value", "number", True, lambda part: part.p_value, "{:.3g}".format),
        _Column("decision", "verdict", False, lambda part: part.rejected, ("accept", "reject").__getitem__),
    ]
    for name in dict.fromkeys(name for part in parts for name in part.details):
        numeric = all(_is_number(part.details.get(name, 0)) for part in parts)
        show = _number if numeric else str
        columns.append(_Column(name, "number" if numeric else "text", numeric, partial(_detail, name), show))
    return [column for column in columns if any(column.value(part) is not None for part in parts)]


def _detail(name: str, part: Part) -> Any:
    return part.details.get(name)


def _heading(column: _Column) -> str:
    sort = "number" if column.numeric else "text"
    order = ' aria-sort="descending"' if column.css == _SCORE else ""
    return (
        f'<th scope="col" role="columnheader" class="{column.css}" data-sort="{sort}"{order}>'
        f"{escaped(column.heading)}</th>"
    )


def _cell(column: _Column, part: Part) -> str:
    value = column.value(part)
    shown = f"<bdi>{'-' if value is None else escaped(column.show(value))}</bdi>"
    if column.css == "verdict":
        mistake = next((_FILTERS[state].removesuffix("s") for state in part.states if state != "rejected"), "")
        shown = f"<b>{shown}</b>" + (f" <em>{mistake}</em>" if mistake else "")
    key = f' data-key="{"" if value is None else float(value)}"' if column.numeric else ""
    return f'<td role="cell" class="{column.css}" data-label="{escaped(column.heading)}"{key}>{shown}</td>'


def _pictures(part: Part, columns: int) -> str:
    """The second row of a part; a part without pictures has none."""
    if not part.pictures:
        return ""
    # decoding: hundreds of pictures must not hold up the page; they are in the file, so there is nothing to load lazily
    figures = "".join(
        f'<figure><img src="{uri}" width="{width}" height="{height}" alt="{escaped(title)}" decoding="async">'
        f"<figcaption>{escaped(title)}</figcaption></figure>"
        for title, uri, width, height in part.pictures
    )
    return f'<tr role="row"><td role="cell" colspan="{columns}"><div class="pictures">{figures}</div></td></tr>'


def _tools(parts: Sequence[Part]) -> str:
    """The filters; hidden until the script brings them to life."""
    states = [state for part in parts for state in ("", *part.states)]
    buttons = "".join(
        f'<button type="button" value="{state}" aria-pressed="{"false" if state else "true"}">'
        f"{text} ({states.count(state)})</button>"
        for state, text in _FILTERS.items()
        if state in states
    )
    return (
        f'<div id="tools" hidden>{buttons}<input id="search" type="search" placeholder="name or kind" '
        'aria-label="Show parts whose name or kind contains this"><span id="shown" role="status"></span></div>\n'
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    head, *numeric = (f'<th scope="col">{escaped(text)}</th>' for text in headings)
    head += "".join(text.replace("<th", '<th class="number"', 1) for text in numeric)
    lines = "".join(
        f'<tr><th scope="row">{escaped(first)}</th>'
        + "".join(f'<td class="number">{escaped(text)}</td>' for text in others)
        + "</tr>\n"
        for first, *others in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n'


def _share(parts: Sequence[Part], state: str) -> str:
    count = sum(state in part.states for part in parts)
    return f"{count} of {len(parts)} ({count / len(parts):.0%})"


def _rate(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _number(value: Any) -> str:
    """Four significant digits, or a whole number as it is."""
    if isinstance(value, numbers.Integral):
        return str(int(value))
    return "-" if math.isnan(value) else f"{float(value):#.4g}".removesuffix(".")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}"
