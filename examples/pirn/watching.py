"""`pirn watch`: inspects parts as their files arrive, and lets nothing stop the line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pirn.inspection import in_cells, in_words, overlay, read_and_inspect, row
from pirn.inspector import Inspector
from protoad.data import PartFiles, list_files, write_rgb
from protoad.errors import ConfigError, DataError
from protoad.report import append_jsonl, read_jsonl, write_csv

__all__ = ["Watch"]

BROKEN = "broken"  # folder for what could not be read
_LOG = "watch.jsonl"  # not the name that detect writes, and would write over
_Stamp = dict[str, list[int]]


class Watch:
    """Inspects what comes into FOLDER/rgb and FOLDER/xyz, and remembers in OUT/watch.jsonl what it has seen.

    A part is looked at when its files are there and have not changed from one look to the next. One that cannot be read
    may still be on its way: it is tried again until its files have not changed for `patience` seconds, and is then set
    aside: its files are moved to FOLDER/broken, with the reason in a text beside them. For a file that is missing
    while others of its kind come, a part waits as long, and is then inspected by what there is.

    A row is written when its overlay is on the disk; after a power cut, going on repeats at most one part. A part whose
    files were replaced, or completed, is inspected anew.

    Args:
        inspector: to ask.
        folder: with rgb/, xyz/ or both; either may appear later.
        out: for watch.jsonl, scores.csv and overlays/.
        patience: seconds that a part may lack a file or be unreadable.
        say: where to tell what happens.

    Raises:
        DataError: if the folder is missing, or `out` holds a damaged log.
        ConfigError: if the patience is negative.
    """

    def __init__(
        self,
        inspector: Inspector,
        folder: Path,
        out: Path,
        *,
        patience: float = 5.0,
        say: Callable[[str], object] = print,
    ) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; make it, with rgb/ and xyz/, before watching it")
        _check_seconds("patience", patience)
        self.inspector, self.folder, self.out, self.patience, self.say = inspector, folder, out, patience, say
        self._table: dict[str, dict[str, Any]] = {}
        self._stale = False  # whether the table on the disk lacks a row
        self._done: dict[str, _Stamp] = {}
        for number, entry in enumerate(read_jsonl(out / _LOG), start=1):
            if not isinstance(entry.get("name"), str) or not isinstance(entry.get("files"), dict):
                raise DataError(f"{out / _LOG}: line {number} is no line of pirn watch; move the file away")
            self._remember(entry)
        self._waiting: dict[str, tuple[_Stamp, float]] = {}  # what the files were like, and since when
        self._complained: set[str] = set()

    def run(self, *, interval: float = 0.5, until_idle: float | None = None) -> None:
        """Looks again and again.

        Args:
            interval: seconds between two looks.
            until_idle: ends after so many seconds without anything to do or to wait for; None goes on until it is
                interrupted.

        Raises:
            ConfigError: if a number of seconds is negative.
        """
        _check_seconds("interval", interval)
        _check_seconds("until_idle", until_idle or 0)
        busy = time.monotonic()
        try:
            while until_idle is None or time.monotonic() - busy < until_idle:
                if self.look() or self._waiting:
                    busy = time.monotonic()
                time.sleep(interval)
        finally:
            self._write_table()

    def look(self) -> int:
        """Inspects what is ready now; gives how many parts were inspected or set aside."""
        there = self._there()
        self._waiting = {name: seen for name, seen in self._waiting.items() if name in there}
        handled = sum(self._look_at(name, files, time.monotonic()) for name, files in there.items())
        if not handled:  # time for it
            self._write_table()
        return handled

    def _there(self) -> dict[str, PartFiles]:
        try:
            return list_files(self.folder, self._complain, depth=self.inspector.pirn.camera is not None)
        except DataError as error:
            if any((self.folder / kind).exists() for kind in PartFiles._fields):  # else they have yet to come
                self._complain(self.folder, str(error))
            return {}

    def _complain(self, path: Path, reason: str) -> None:
        if f"{path}: {reason}" not in self._complained:  # once, not at every look
            self._complained.add(f"{path}: {reason}")
            self.say(f"warning: {path}: {reason}")

    def _look_at(self, name: str, files: PartFiles, now: float) -> bool:
        """Inspects a part or sets it aside, if it is time; gives whether either was done."""
        stamp = _stamp(files)
        if stamp is None or stamp.items() <= self._done.get(name, {}).items():  # a file that was taken away is no news
            self._waiting.pop(name, None)
            return False
        before, since = self._waiting.get(name, (None, now))
        if stamp != before:  # new, or still being written
            self._waiting[name] = (stamp, now)
            return False
        if not self._handle(name, files, stamp, wait=now - since < self.patience):
            return False
        self._waiting.pop(name)
        return True

    def _handle(self, name: str, files: PartFiles, stamp: _Stamp, *, wait: bool) -> bool:
        kinds = [kind for kind in PartFiles._fields if (self.folder / kind).is_dir()]
        if wait and any(getattr(files, kind) is None for kind in kinds):
            return False
        try:
            found = read_and_inspect(self.inspector, name, files)
        except (DataError, OSError) as error:
            if wait:
                return False
            self._set_aside(name, files, stamp, str(error))
            return True
        entry = {**row(found), "seconds": round(found.seconds, 3), "files": stamp}
        try:
            write_rgb(self.out / "overlays" / f"{name}.png", overlay(self.inspector, found))
            append_jsonl(self.out / _LOG, entry)
        except DataError as error:  # such as a full disk: tried again at every look
            self._complain(self.out, str(error))
            return False
        self._remember(entry)
        self.say(in_words(found))
        return True

    def _set_aside(self, name: str, files: PartFiles, stamp: _Stamp, reason: str) -> None:
        """Moves the files of a part out of the way; where that cannot be done, it is passed over from now on."""
        self._done[name] = stamp
        try:
            kept = self._free_name(name)
            for kind, path in files._asdict().items():
                if path is not None:
                    (self.folder / BROKEN / kind).mkdir(parents=True, exist_ok=True)
                    os.replace(path, self.folder / BROKEN / kind / f"{kept}{path.suffix}")
            (self.folder / BROKEN / f"{kept}.txt").write_text(f"{reason}\n", encoding="utf-8")
            self.say(f"{name}: set aside in {self.folder / BROKEN}: {reason}")
        except OSError as error:
            self.say(f"{name}: passed over, it cannot be moved to {self.folder / BROKEN} ({error.strerror}): {reason}")

    def _free_name(self, name: str) -> str:
        """The name, or with a number: an earlier part of that name may have been broken, too."""
        names = (name, *(f"{name}-{number}" for number in range(2, 10**6)))
        return next(free for free in names if not (self.folder / BROKEN / f"{free}.txt").exists())

    def _remember(self, entry: dict[str, Any]) -> None:
        self._done[entry["name"]] = entry["files"]
        self._table[entry["name"]] = in_cells({name: value for name, value in entry.items() if name != "files"})
        self._stale = True

    def _write_table(self) -> None:
        if self._stale:
            write_csv(self.out / "scores.csv", list(self._table.values()))
            self._stale = False


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{name}: expected seconds, 0 or more, got {seconds}")


def _stamp(files: PartFiles) -> _Stamp | None:
    """Size and time of last change of each file; None if one has just gone."""
    try:
        found = {kind: path.stat() for kind, path in files._asdict().items() if path is not None}
    except OSError:
        return None
    return {kind: [seen.st_size, seen.st_mtime_ns] for kind, seen in found.items()}
