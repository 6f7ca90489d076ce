"""Table and figure of what detectors cost, with the paper's printed numbers in the same table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pirn.studies.efficiency.flops import feed_forward_flops, transformer_block_flops
from pirn.studies.measuring import NOT_AVAILABLE, NOT_MEASURED
from pirn.studies.printed import Printed, printed
from protoad.viz.style import LINE, REGIONS, new_figure, styled, write_figure

__all__ = ["AS_PRINTED", "OURS", "VIT_B", "write_report"]

OURS, AS_PRINTED, VIT_B = "PIRN", "PIRN (faithful)", "DINOv2 ViT-B/14"
_STAGES = ("encoder", "decoder", "score")
_COLOURS = dict(zip(_STAGES, (LINE, REGIONS[5], REGIONS[2]), strict=True))
_HATCHES = {"encoder": "", "decoder": "//", "score": ".."}
_HEADS = (
    "encoder",
    "detector",
    "image AUROC",
    "GFLOPs",
    "encoder + decoder + score",
    "million parameters, frozen + trained",
    "CPU time relative to PIRN, same encoder",
    "CPU time, encoder / decoder / score",
    "CPU ms (quartiles)",
    "CPU peak MB",
    "GPU ms (quartiles)",
    "GPU peak MB",
)
_LEGEND = (
    "CPU: {cpu}, {clock} time. GPU: {gpu}. Printed latencies: RTX 4090. "
    "One part at a time, 224 x 224 pixels, two modalities, from prepared images to score and heatmaps; detectors "
    "learnt from {shots} shots. GFLOPs: 10^9 floating point operations, two for a multiplication and its addition, of "
    "products of matrices and convolutions; what is done entry by entry is not counted. Encoders: one serves both "
    "modalities, its blocks after the last one that is used are left out. Times: medians of {runs} runs, relative "
    "ones and shares within this run. Peak memory: of a process that only looks at parts, above what it had before it "
    "loaded the detector, in 10^6 bytes. Pretrained encoders have random weights here, on which none of this depends; "
    "an accuracy would."
)

Row = Mapping[str, Any]


def write_report(stem: Path, rows: Sequence[Row]) -> None:
    """Writes STEM.md and STEM.png from the rows of the study; of several CPUs or GPUs, the one measured last."""
    latest = {row["kind"]: row["device"] for row in rows}
    of_kind = {
        kind: {(row["encoder"], row["detector"]): row for row in rows if row["device"] == latest.get(kind)}
        for kind in ("cpu", "cuda")
    }
    lines = [_line(_HEADS), "| --- " * len(_HEADS) + "|"]
    lines += [_line(_measured(of_kind, key)) for key in of_kind["cpu"]]
    lines += [_line(_as_printed(one)) for one in printed(4)]
    first = next(iter(of_kind["cpu"].values()))
    named = {"cpu": latest["cpu"], "gpu": latest.get("cuda", NOT_MEASURED)}
    named |= {name: first[name] for name in ("clock", "shots", "runs")}
    lines += ["", _LEGEND.format(**named)]
    lines += ["", *_of_the_printed(of_kind["cpu"].get((VIT_B, AS_PRINTED))), ""]
    stem.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    write_figure(stem.with_suffix(".png"), _figure(list(of_kind["cpu"].values())))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measured(of_kind: Mapping[str, Mapping[tuple[str, str], Row]], key: tuple[str, str]) -> list[str]:
    row, reference = of_kind["cpu"][key], of_kind["cpu"].get((key[0], OURS))
    operations = [row[f"{stage} flops"] / 1e9 for stage in _STAGES]
    times = [row[f"{stage} ms"] for stage in _STAGES]
    return [
        *key,
        NOT_AVAILABLE if row["random weights"] else NOT_MEASURED,
        f"{sum(operations):.2f}",
        " + ".join(f"{one:.2f}" for one in operations),
        f"{row['encoder parameters'] / 1e6:.2f} + {row['trained parameters'] / 1e6:.2f}",
        "" if reference is None else f"{row['ms'] / reference['ms']:.2f}",
        " / ".join(f"{one / sum(times):.0%}" for one in times),
        _time(row),
        _memory(row),
        _time(of_kind["cuda"].get(key)),
        _memory(of_kind["cuda"].get(key)),
    ]


def _as_printed(one: Printed) -> list[str]:
    """A row of the paper's."""
    method = OURS if one.method == "Ours" else one.method
    found = ["as printed", f"{method} (printed)", f"{one.metrics['image_auroc']:.3f}", f"{one.metrics['gflops']:.2f}"]
    empty = [""] * (_HEADS.index("GPU ms (quartiles)") - len(found))
    return [*found, *empty, f"{one.metrics['latency_ms']:.2f} (RTX 4090)", ""]


def _time(row: Row | None) -> str:
    return NOT_MEASURED if row is None else f"{row['ms']:.1f} ({row['ms low']:.1f} to {row['ms high']:.1f})"


def _memory(row: Row | None) -> str:
    return NOT_MEASURED if row is None or math.isnan(row["peak MB"]) else f"{row['peak MB']:.0f}"


def _of_the_printed(row: Row | None) -> list[str]:
    """Where the paper's operations may come from."""
    if row is None:
        return []
    ours = sum(row[f"{stage} flops"] for stage in _STAGES) / 1e9
    theirs = next(one.metrics["gflops"] for one in printed(4) if one.method == "Ours")
    left_out = 2 * 2 * transformer_block_flops(row["tokens"] + 1, row["dim"]) / 1e9  # two blocks, two modalities
    network = 2 * 2 * feed_forward_flops(row["tokens"], row["dim"]) / 1e9  # two layers, two modalities
    whole = ours + left_out
    return [
        f"**The printed {theirs:.2f} GFLOPs.** {AS_PRINTED} with {VIT_B} counts {ours:.2f}: the encoder of two "
        f"modalities {row['encoder flops'] / 1e9:.2f}, the decoder {row['decoder flops'] / 1e9:.2f}, the score the "
        f"rest. Blocks 10 and 11 are left out, since only the means of blocks 2 to 9 are used; with them it were "
        f"{whole:.2f}, and {theirs - whole:.2f} are still missing. An estimate, no more: a feed-forward network four "
        f"times as wide as a token, in each of two decoder layers and for each modality, would add {network:.2f} and "
        f"come to {whole + network:.2f}. The paper mentions no such network, nor how its operations were counted."
    ]


@styled
def _figure(rows: Sequence[Row]) -> Any:
    """Operations as dots, the printed ones hollow; the share of each stage in the time as bars."""
    labels = [f"{row['encoder']}, {row['detector']}" for row in rows]
    print_only = [(f"{_as_printed(one)[1]}", one.metrics["gflops"]) for one in printed(4)]
    size = (9, 1.6 + 0.26 * (len(rows) + len(print_only)))
    figure, ((left, right),) = new_figure(1, 2, size=size, sharey=True)
    totals = [sum(row[f"{stage} flops"] for stage in _STAGES) / 1e9 for row in rows]
    left.scatter(totals, range(len(rows)), color="black", s=22, label="counted here")
    below = range(len(rows), len(rows) + len(print_only))
    style = {"facecolors": "none", "edgecolors": "0.4", "marker": "D", "s": 24}
    left.scatter([value for _, value in print_only], below, label="printed in the paper", **style)
    left.set(xlabel="GFLOPs for one part", xscale="log", ylim=(len(rows) + len(print_only) - 0.4, -0.6))
    left.xaxis.set_major_formatter("{x:g}")
    left.set_yticks(range(len(rows) + len(print_only)), [*labels, *(label for label, _ in print_only)])
    start = [0.0] * len(rows)
    for stage in _STAGES:
        shares = [100 * row[f"{stage} ms"] / sum(row[f"{one} ms"] for one in _STAGES) for row in rows]
        right.barh(
            range(len(rows)), shares, left=start, color=_COLOURS[stage], hatch=_HATCHES[stage], label=stage, height=0.7
        )
        start = [before + share for before, share in zip(start, shares, strict=True)]
    right.set(xlabel="share of the time on this CPU, %", xlim=(0, 100))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=5)
    return figure
