"""Writes docs/performance.md from the JSON files of benchmarks/results: `python benchmarks/page.py`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = ["page", "read"]

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"

Case = dict[str, Any]
Report = dict[str, Any]

INTRODUCTION = """\
# Performance

How long `protoad.ops.sinkhorn` takes, beside other ways to the same transport plan. This page is written by
`python benchmarks/page.py` from what `python benchmarks/compare.py` measured; `benchmarks/results` has every figure
with its quartiles.

How it is measured:

- All of them get the same inputs in one process and take turns in random order; a figure is the median of the rounds.
  **A ratio is a rival's time over protoad's of the same round: above 1, protoad is faster.**
- One thread is timed in CPU time of the process, two threads in wall time, which tells something only of a machine
  that was idle otherwise (its load at the start is given below), a GPU by its own events. numpy has one thread always.
- The inputs are made to look like features of a vision transformer: 768 dimensions, a common mean, twelve clusters of
  uneven size, noise. float32, epsilon 0.05, 20 iterations, where nothing else is said.
- Nothing is timed before its result agreed with a float64 reference: plans to 1e-4 of the largest entry, gradients and
  reconstructions to 1e-3. All but geomloss walk through the same iterates as protoad (prototypes first, tokens last),
  so that 20 iterations are the same plan. geomloss and the implicit gradient have to agree where all have converged,
  to 5e-3: geomloss gets no closer with 2000 iterations.
- Each rival gets the cost in the order of axes in memory that it is faster with at that shape, where nothing else is
  said. The loops named after
  SuperGlue and SwAV are written anew after their descriptions; the compiled loop is a textbook scaling loop under
  `torch.compile` for fixed shapes, its compilation not counted.
- softmax solves no transport problem: it is the price of plain prototype attention, and no rival.
"""

SECTIONS = {
    "forward": ("From a cost to the plan", "Forward only."),
    "backward": (
        "Plan and gradient",
        "From a cost to the plan and back to the gradient to the cost. protoad's default is the exact gradient of the "
        "iterations run, as autograd gives it for the rivals; `implicit` is that of the converged plan. geomloss and "
        "numpy have no gradient of the plan.",
    ),
    "whole forward": (
        "Tokens to reconstruction",
        "Cosine cost, plan and reconstruction of (b n d) tokens from (k d) prototypes, d = 768. Rivals normalise with "
        "`F.normalize` and multiply with `@` around their solver; the compiled loop is compiled with all of it.",
    ),
    "whole backward": ("Tokens to reconstruction, with gradients to tokens and prototypes", "As above, and back."),
    "memory": (
        "Memory kept for the gradient",
        "Megabytes that autograd holds from the forward to the backward pass, from a cost to the plan.",
    ),
    "convergence": (
        "Time to a marginal error",
        "Until no row or column sum is off by more than the target, relatively. protoad and the rivals run exactly the "
        "iterations they need, found beforehand; `tol` and `newton` pay for finding out when to stop, and so does POT "
        "with its own rule, which looks every tenth iteration, and is told the error that will do. geomloss also runs "
        "as many iterations as it needs, found by trial; a dash means more than 1280.",
    ),
}

TOKENS_FIRST = (
    "The same once more with each rival's cost as `tokens @ prototypes.T` leaves it in memory, tokens first, which is "
    "what their callers have at hand unless they know better; nothing is compiled. "
)
# Words in names.
NOT_RIVALS, COMPILED = ("protoad", "softmax"), ("torch.compile",)


def read(folder: Path) -> list[Report]:
    """Gives the reports of a folder, in the order of their file names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("c[pu]*.json"))]  # cpu and cuda


def page(reports: list[Report]) -> str:
    """Gives the page, with a part for each device; one without a report is not measured."""
    parts = [INTRODUCTION]
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        parts.append(f"## {title}\n")
        found = [report for report in reports if report["device"] == device]
        if not found:
            parts.append(
                f"Not measured. `python benchmarks/compare.py --device {device}` measures it, and "
                "`python benchmarks/page.py` writes it here.\n"
            )
        for report in found:
            parts += device_part(report)
    return "\n".join(parts)


def device_part(report: Report) -> list[str]:
    """The parts of one report: the machine, then a table for each section and clock."""
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    quick = " A quick run, to see that it works: not for conclusions." if report["quick"] else ""
    order = TOKENS_FIRST if report.get("tokens_first") else ""
    parts = [f"{order}Measured {report['date']} at commit {report['commit']}. {facts}.{quick}\n"]
    for section, (title, text) in SECTIONS.items():
        ours = [case for case in report["cases"] if case["section"] == section]
        if not ours:
            continue
        parts += [f"### {title}{', costs with tokens first' if order else ''}\n", text + "\n"]
        for key in dict.fromkeys((case["threads"], case["unit"]) for case in ours):
            chosen = [case for case in ours if (case["threads"], case["unit"]) == key]
            parts.append(section_part(chosen))
    return parts


def section_part(cases: list[Case]) -> str:
    """What one clock showed in one section: a sentence, medians over the cases, and a row for each case."""
    first, unit = cases[0], cases[0]["unit"]
    names = list(dict.fromkeys(row["name"] for case in cases for row in case["rows"]))
    others = [name for name in names if name != first["baseline"]]
    memory = first["section"] == "memory"
    amount = "MB" if memory else "ms"
    threads = "" if memory or unit.startswith("GPU") else f", {first['threads']} thread{'s' * (first['threads'] > 1)}"
    head = ["b n k", *(name for name in ("epsilon", "target", "iterations") if name in first)]
    head += [f"protoad {amount}", *others]
    rows = [["**median**", *[""] * (len(head) - len(others) - 1), *(over_cases(cases, name) for name in others)]]
    for case in cases:
        by_name = {row["name"]: row for row in case["rows"]}
        figures = [" ".join(map(str, case["shape"]))]
        figures += [f"{case[name]:g}" for name in ("epsilon", "target", "iterations") if name in case]
        figures.append(quantity(by_name[first["baseline"]]))
        rows.append(figures + [ratio(by_name.get(name)) for name in others])
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    caption = f"{unit[0].upper()}{unit[1:]}{threads}. {verdict(cases)}"
    return caption + "\n\n" + "".join(f"| {line} |\n" for line in lines)


def verdict(cases: list[Case]) -> str:
    """How protoad stands against the best rival of each case, whichever that is, with and without compiled ones."""
    kinds: list[tuple[str, tuple[str, ...]]] = [("best rival", NOT_RIVALS)]
    if any(word in row["name"] for case in cases for row in case["rows"] for word in COMPILED):
        kinds.append(("best rival that needs no compiling", NOT_RIVALS + COMPILED))
    better = "smaller" if cases[0]["section"] == "memory" else "faster"
    sentences = []
    for kind, excluded in kinds:
        margins = [margin for case in cases if (margin := best_ratio(case, excluded)) is not None]
        if margins:
            sentences.append(
                f"Against the {kind} of each case, protoad is {better} in {sum(margin > 1 for margin in margins)} of "
                f"{len(margins)}; median ratio {figure(statistics.median(margins))}, from {figure(min(margins))} to "
                f"{figure(max(margins))}."
            )
    return " ".join(sentences) or "No rival ran."


def best_ratio(case: Case, excluded: tuple[str, ...]) -> float | None:
    """The smallest ratio of a case, leaving out names with these words."""
    ratios = [
        row["ratio"][1] for row in case["rows"] if "ratio" in row and not any(word in row["name"] for word in excluded)
    ]
    return min(ratios, default=None)


def over_cases(cases: list[Case], name: str) -> str:
    """The median ratio of one way over the cases where it was measured."""
    ratios = [row["ratio"][1] for case in cases for row in case["rows"] if row["name"] == name and "ratio" in row]
    return f"**{figure(statistics.median(ratios))}**" if ratios else "-"


def quantity(row: dict[str, Any]) -> str:
    if "failed" in row:
        return "failed"
    return figure(row["bytes"] / 1e6) if "bytes" in row else figure(row["ms"][1])


def ratio(row: dict[str, Any] | None) -> str:
    """A dash where a way was not tried, or did not get there."""
    return "-" if row is None or "ratio" not in row else figure(row["ratio"][1])


def figure(value: float) -> str:
    """Two or three digits that count."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def main() -> None:
    PAGE.write_text(page(read(RESULTS)))


if __name__ == "__main__":
    main()
