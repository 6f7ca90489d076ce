"""Where defect pixels stand among the others: all that pixel metrics need, from blocks that never lie side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["Defects", "Standing", "ThinnedSample", "from_keys", "normal_keys", "stand_in_blocks", "to_keys"]

_BLOCK = 2**26  # unmarked pixels sorted at a time: 256 MiB of float32
_FAN = 4
_CHUNK = 2**18  # scores turned into keys at a time: small enough for a processor's cache


class Standing(NamedTuple):
    """Where each distinct score of a defect pixel stands among the unmarked pixels.

    Attributes:
        keys: (s) the scores as keys, rising.
        pixels: (s) how many defect pixels have each.
        share: (s) what they add to the mean overlap of the regions; 1 in all.
        below: (s) how many unmarked pixels score lower.
        not_above: (s) how many score lower or the same.
        num_normal: how many unmarked pixels there are.
    """

    keys: np.ndarray
    pixels: np.ndarray
    share: np.ndarray
    below: np.ndarray
    not_above: np.ndarray
    num_normal: int

    @property
    def defined(self) -> bool:
        """Whether there are pixels of both kinds."""
        return bool(len(self.keys) and self.num_normal)


def to_keys(scores: np.ndarray) -> np.ndarray:
    """Integers in the order of finite floats of the same width: they sort faster. -0 is 0."""
    return _flip((scores + scores.dtype.type(0)).view(f"i{scores.itemsize}"))


def from_keys(keys: np.ndarray) -> np.ndarray:
    """The floats again."""
    return _flip(keys.copy()).view(f"f{keys.itemsize}")


def _flip(bits: np.ndarray) -> np.ndarray:
    """Turns round the order of the negative ones, in place: theirs rises with the magnitude."""
    bits ^= (bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max
    return bits


class Defects:
    """The defect pixels, kept one and all: 4 bytes each for float32, 8 for float64."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []

    def add(self, scores: np.ndarray, mask: np.ndarray, *, regions: bool = True) -> None:
        """Takes the marked pixels of one image; without `regions`, all of them as one region."""
        keys = to_keys(scores[mask])
        if not keys.size:
            return
        sizes = np.array([keys.size])
        if regions:
            region = _regions(mask)
            sizes = np.bincount(region)[1:]
            keys = keys[np.argsort(region, kind="stable")] if len(sizes) > 1 else keys
        self._keys.append(keys)
        self._sizes.append(sizes)

    def by_score(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distinct keys, rising; pixels and share of each, as in `Standing`."""
        if not self._keys:
            return np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0)
        keys, sizes = np.concatenate(self._keys), np.concatenate(self._sizes)
        share = np.repeat(1 / (sizes * len(sizes)), sizes)
        order = np.argsort(keys)
        keys, share = keys[order], share[order]
        del order  # as large as both
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        pixels = np.diff(starts, append=len(keys))
        return keys[starts], pixels, np.add.reduceat(share, starts)


def _regions(mask: np.ndarray) -> np.ndarray:
    """1..r for each marked pixel: the 8-connected components of a mask with at least one."""
    from scipy.ndimage import label

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labelled: np.ndarray = label(window, structure=np.ones((3, 3), dtype=int))[0]
    return labelled[window]


def stand_in_blocks(defects: Defects, images: Iterable[tuple[np.ndarray, np.ndarray]], num_normal: int) -> Standing:
    """Exact standing, from (scores, mask) of each image with `num_normal` unmarked pixels in all."""
    keys, pixels, share = defects.by_score()
    below, not_above = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    if len(keys):
        for block in _normal_blocks(images, num_normal, keys.dtype):
            _count(block, 1, keys, below, not_above)
    return Standing(keys, pixels, share, below, not_above, num_normal)


def _normal_blocks(
    images: Iterable[tuple[np.ndarray, np.ndarray]], num_normal: int, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Sorted keys of the unmarked pixels, in one buffer that is filled again and again."""
    buffer, filled = np.empty(min(_BLOCK, num_normal), dtype), 0
    for keys in normal_keys(images):
        start = 0
        while start < len(keys):
            taken = min(len(keys) - start, len(buffer) - filled)
            buffer[filled : filled + taken] = keys[start : start + taken]
            start, filled = start + taken, filled + taken
            if filled == len(buffer):
                buffer.sort()
                yield buffer
                filled = 0
    if filled:
        buffer[:filled].sort()
        yield buffer[:filled]


def normal_keys(images: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    """Keys of the unmarked pixels, some at a time."""
    for scores, mask in images:
        scores, mask = scores.reshape(-1), mask.reshape(-1)
        for start in range(0, len(scores), _CHUNK):
            piece, marked = scores[start : start + _CHUNK], mask[start : start + _CHUNK]
            yield to_keys(piece[~marked] if marked.any() else piece)


def _count(normal: np.ndarray, weight: int, keys: np.ndarray, below: np.ndarray, not_above: np.ndarray) -> None:
    """Adds to the counts of the rising `keys` how many of the sorted `normal` are lower, and how many not higher."""
    for start in range(0, len(keys), _CHUNK):
        some = slice(start, start + _CHUNK)
        piece = keys[some]
        count = np.searchsorted(normal, piece)
        below[some] += weight * count
        tied = np.flatnonzero(normal[np.minimum(count, len(normal) - 1)] == piece)
        count[tied] = np.searchsorted(normal, piece[tied], side="right")
        not_above[some] += weight * count


class ThinnedSample:
    """Any number of unmarked pixels in little memory, with the largest error that any of their ranks can have.

    Level 0 takes the pixels as they are. A level that is full is sorted, and every fourth key goes up a level, where
    it stands for itself and the three before it. So the pixels counted below a score become fewer, never more, and by
    at most three keys of that level, whatever the scores are. The sum of these losses bounds the error of any count.

    Args:
        capacity: keys per level; a multiple of four.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._levels: list[np.ndarray] = []
        self._filled: list[int] = []
        self._lowest: int | None = None
        self.count = 0
        self.loss = 0  # a count is too low by no more than this

    def add(self, keys: np.ndarray) -> None:
        """Takes the keys of some pixels."""
        if not keys.size:
            return
        lowest = int(keys.min())
        self._lowest = lowest if self._lowest is None else min(self._lowest, lowest)
        self.count += len(keys)
        self._put(0, keys)

    def _put(self, level: int, keys: np.ndarray) -> None:
        if level == len(self._levels):
            self._levels.append(np.empty(self._capacity, keys.dtype))
            self._filled.append(0)
        while keys.size:
            filled = self._filled[level]
            taken = keys[: self._capacity - filled]
            self._levels[level][filled : filled + len(taken)] = taken
            self._filled[level] += len(taken)
            keys = keys[len(taken) :]
            if self._filled[level] == self._capacity:
                self._thin(level)

    def _thin(self, level: int) -> None:
        self._levels[level].sort()
        self._filled[level] = 0
        self.loss += (_FAN - 1) * _FAN**level
        self._put(level + 1, self._levels[level][_FAN - 1 :: _FAN])

    @property
    def max_error(self) -> float:
        """The largest error of a false-positive rate taken from `stand`."""
        return (self.loss + 1) // 2 / self.count if self.loss else 0.0

    def stand(self, defects: Defects) -> Standing:
        """The standing of the defect pixels among these, exact while no level was full."""
        keys, pixels, share = defects.by_score()
        below, not_above = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
        for level, (buffer, filled) in enumerate(zip(self._levels, self._filled, strict=True)):
            if filled and len(keys):
                buffer[:filled].sort()
                _count(buffer[:filled], _FAN**level, keys, below, not_above)
        for counts in (below, not_above) if self.loss else ():  # to the middle of what is possible
            counts += self.loss // 2
            np.minimum(counts, self.count, out=counts)
        if self._lowest is not None:  # and nothing is below the lowest
            below[: np.searchsorted(keys, self._lowest, side="right")] = 0
            not_above[: np.searchsorted(keys, self._lowest)] = 0
        return Standing(keys, pixels, share, below, not_above, self.count)
