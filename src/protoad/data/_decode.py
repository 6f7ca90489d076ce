"""Opening files that nobody vouches for.

A header is checked before anything is decoded, and whatever a decoder stumbles over becomes one kind of error, which
names the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from protoad._lazy import require
from protoad.errors import DataError, MissingExtraError

__all__ = ["MAX_PIXELS", "PathLike", "check_file", "check_size", "image_kind", "open_image", "read_npy", "read_tiff"]

PathLike = str | os.PathLike[str]

MAX_PIXELS = 64_000_000
"""Largest frame that is decoded: a header may promise gigabytes that a small file doesn't hold."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # of what Pillow knows; some of the rest start other programs
_DENSEST = 1100  # bytes that one byte of a deflated file can stand for: 1032, and a little


@contextlib.contextmanager
def open_image(path: PathLike) -> Iterator[Any]:
    """Gives a Pillow image whose header was checked; decoding it inside the block may fail with the same error.

    Raises:
        DataError: if the file is missing, damaged, of another format, or larger than `MAX_PIXELS`.
    """
    check_file(path)
    pil = require("PIL.Image", extra="data")
    require("PIL.TiffImagePlugin", extra="data")  # the one of them that Pillow doesn't load by itself
    quiet = _quiet("PIL.TiffImagePlugin")
    with _only_data_errors(path, "a readable image"), quiet, warnings.catch_warnings():
        _check_png(path)
        warnings.simplefilter("ignore")  # of sizes, which are checked here, and of metadata, which nobody asked for
        try:
            image = pil.open(os.fspath(path), formats=_FORMATS)
        except pil.DecompressionBombError as error:
            raise DataError(f"{path}: {_brief(error)}; the limit here is {MAX_PIXELS} pixels") from error
        except pil.UnidentifiedImageError as error:
            raise DataError(
                f"{path}: not a readable image, or none of {', '.join(_FORMATS)}; convert it or copy it again"
            ) from error
        with image:
            check_size(path, *image.size)
            yield image


def image_kind(path: PathLike, image: Any) -> str:
    """Pillow's mode, or "16-bit RGB": it silently keeps the upper 8 of 16 bits, and a 12-bit camera comes out black."""
    if image.format == "PNG" and image.mode in ("RGB", "RGBA"):
        with open(path, "rb") as file:
            header = file.read(25)
        if len(header) == 25 and header[24] == 16:  # bit depth in the IHDR chunk
            return f"16-bit {image.mode}"
    return str(image.mode)


def read_tiff(path: PathLike, check: Callable[[tuple[int, ...], Any], None]) -> np.ndarray:
    """The first page of a TIFF file.

    Args:
        path: of the file.
        check: called with shape and dtype before anything is decoded; raises to refuse them.

    Raises:
        DataError: if the file is missing, damaged, compressed in a way that needs another package, or larger than
            `MAX_PIXELS`.
    """
    check_file(path)
    tifffile = require("tifffile", extra="data")
    opened = tifffile.TiffFile
    with _only_data_errors(path, "a readable TIFF file"), _quiet("tifffile"), opened(os.fspath(path)) as file:
        page = file.pages[0]
        if len(page.shape) >= 2:
            check_size(path, page.shape[1], page.shape[0])
        check(page.shape, page.dtype)
        _check_promise(path, page)
        try:
            return np.asarray(page.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            kind = getattr(page.compression, "name", page.compression)
            raise DataError(
                f"{path}: is compressed by {kind}; run: pip install imagecodecs, or store it uncompressed"
            ) from error


def tiff_shape(path: PathLike) -> tuple[int, ...]:
    """The shape of the first page of a TIFF file, which is not decoded.

    Raises:
        DataError: if the file is missing or damaged.
    """
    check_file(path)
    opened = require("tifffile", extra="data").TiffFile
    with _only_data_errors(path, "a readable TIFF file"), _quiet("tifffile"), opened(os.fspath(path)) as file:
        return tuple(file.pages[0].shape)


def read_npy(path: PathLike) -> np.ndarray:
    """The array in a NumPy file; never a pickle.

    Raises:
        DataError: if the file is missing, damaged, holds objects, or is larger than `MAX_PIXELS`.
    """
    check_file(path)
    with _only_data_errors(path, "a readable NumPy array"):
        mapped = np.lib.format.open_memmap(os.fspath(path), mode="r")
        check_size(path, mapped.size, 1)
        return np.array(mapped)


def check_file(path: PathLike) -> None:
    """Raises a `DataError` unless there is a file with something in it."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file; check the path")
    if not os.path.isfile(path):
        raise DataError(f"{path}: is a folder, expected a file")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: may not be read; check its permissions")
    if os.path.getsize(path) == 0:
        raise DataError(f"{path}: is empty (0 bytes); copy the file again")


def check_size(path: PathLike, width: int, height: int) -> None:
    """Raises a `DataError` for a frame of more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: its header promises {width} x {height} pixels, the limit is {MAX_PIXELS}; "
            "crop the frame or repair the file"
        )


def _check_promise(path: PathLike, page: Any) -> None:
    """Refuses a page that cannot be in the file, before its pixels are allocated."""
    size, held = os.path.getsize(path), sum(page.databytecounts)
    ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False))
    if max(ends, default=0) > size or page.nbytes > held * (1 if page.compression == 1 else _DENSEST):
        raise DataError(
            f"{path}: its header promises {page.nbytes} bytes of pixels, which its {size} cannot hold; copy it again"
        )


def _check_png(path: PathLike) -> None:
    """Refuses a PNG file with a chunk longer than the file, for which a decoder would ask for memory."""
    size, place = os.path.getsize(path), 8
    with open(path, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return
        while len(head := file.read(8)) == 8:
            place += 12 + int.from_bytes(head[:4], "big")
            if place > size:
                raise DataError(f"{path}: not a readable image (ends in the middle of a chunk); copy the file again")
            if head[4:] == b"IEND":
                return
            file.seek(place)


@contextlib.contextmanager
def _only_data_errors(path: PathLike, expected: str) -> Iterator[None]:
    try:
        yield
    except (DataError, MissingExtraError):
        raise
    except MemoryError as error:
        raise DataError(f"{path}: doesn't fit into memory; crop the frame or free some") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
        raise DataError(f"{path}: not {expected} ({_brief(error)}); copy the file again") from error


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A decoder's log of what is odd in a file would stand beside the one sentence that says so."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
