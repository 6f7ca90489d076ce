"""`pirn check`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from protoad.data import TEMPLATE, Findings, Folder, Problem, SplitFindings, check_dataset
from protoad.errors import ConfigError, DataError
from protoad.report import write_json

__all__ = ["format_findings", "run_check"]

_SHOWN = 30  # lines of problems on the terminal; --json has all


def run_check(arguments: argparse.Namespace) -> None:
    """`pirn check`.

    Raises:
        DataError: in the end, if anything was wrong; or at once if there is nothing to read.
    """
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"jobs: expected 1 or more, got {arguments.jobs}")
    options = dict(arguments.option)
    if arguments.dataset.lower() == "folder":
        _explain_folder(arguments, options)
    findings = check_dataset(
        arguments.dataset,
        arguments.root,
        None if arguments.category == ["all"] else arguments.category,
        jobs=arguments.jobs,
        progress=_progress if sys.stderr.isatty() else None,
        **options,
    )
    print(format_findings(findings))
    if arguments.json is not None:
        write_json(arguments.json, findings._asdict())
    parts = sum(split.parts for split in findings.splits)
    if findings.problems:
        count = len(findings.problems)
        raise DataError(f"{arguments.root}: {count} problem{'s' if count > 1 else ''} found, among {parts} parts")
    print(f"\n{parts} parts, nothing wrong")


def _explain_folder(arguments: argparse.Namespace, options: dict[str, str]) -> None:
    """Shows how to declare one's files, if that is what is missing."""
    try:
        Folder.categories(arguments.root, **options)
    except DataError:
        if arguments.root.is_dir():
            print(f"# write this to {arguments.root}/protoad.toml, with your own paths:\n\n{TEMPLATE}")
        raise


def format_findings(findings: Findings) -> str:
    """A table of the splits, then notes, then problems, those that are alike on one line."""
    rows: list[tuple[str, ...]] = [("category", "split", "parts", "kinds", "pixels", "without a point")]
    rows += [_row(split) for split in findings.splits]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if findings.notes:
        lines += ["", "to know:", *(f"  {note}" for note in findings.notes)]
    if findings.problems:
        lines += ["", "problems:", *_grouped(findings.problems)]
    return "\n".join(lines if findings.splits else lines[2:])


def _grouped(problems: Sequence[Problem]) -> list[str]:
    alike: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        alike.setdefault((problem.category, problem.split, problem.reason), []).append(problem.file)
    lines = [
        f"  {files[0]}{f' (and {len(files) - 1} more)' if len(files) > 1 else ''}: {reason}"
        for (_, _, reason), files in alike.items()
    ]
    left = len(lines) - _SHOWN
    return lines[:_SHOWN] + ([f"  and {left} more kinds; --json FILE lists all"] if left > 0 else [])


def _row(split: SplitFindings) -> tuple[str, ...]:
    ordered = sorted(split.defects.items(), key=lambda item: item[0] != "good")
    kinds = ", ".join(f"{count} {kind}" for kind, count in ordered)
    sizes = "; ".join(size if len(split.sizes) == 1 else f"{size} ({count})" for size, count in split.sizes.items())
    return (split.category, split.split, str(split.parts), kinds, sizes, _share(split.invalid))


def _share(invalid: tuple[float, float, float] | None) -> str:
    if invalid is None:
        return "-"
    low, middle, high = (f"{100 * share:.1f}" for share in invalid)
    return f"{low} %" if low == high else f"{low} to {high} %, median {middle}"


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done} of {total} parts read", end=end, file=sys.stderr, flush=True)
