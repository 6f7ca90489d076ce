"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from protoad.errors import DataError, ProtoadError

__all__ = ["write_atomically"]


def write_atomically(
    path: str | os.PathLike[str], write: Callable[[Path], object], *, error: type[ProtoadError] = DataError
) -> None:
    """Writes beside the target, flushes to disk, then renames: an interruption leaves the old file or the new one.

    Args:
        path: of the file; its folder is made if missing.
        write: writes the content to the path it is given.
        error: raised, naming the path, if the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as cause:
        reason = cause.strerror or str(cause) or type(cause).__name__
        raise error(f"{path}: cannot be written ({reason}); choose another place") from cause
    finally:
        with contextlib.suppress(OSError):  # gone after success; never there if the folder could not be made
            temporary.unlink()
