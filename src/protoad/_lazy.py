"""Optional dependencies, imported only when something needs them.

They may be absent, cost seconds and memory to import, or be broken: none of that may touch `import protoad`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from types import ModuleType

from protoad.errors import MissingExtraError

__all__ = ["require", "require_open3d"]

_EXPECTED_ATTRIBUTE = {"cv2": "imread"}  # removing one of two overlapping opencv wheels leaves an empty cv2 behind


def require(module: str, *, extra: str) -> ModuleType:
    """Imports `module`, or says which extra brings it.

    Args:
        module: importable name, such as "cv2".
        extra: the extra of protoad that installs it, such as "data".

    Raises:
        MissingExtraError: if the module is absent or an empty shell; names the pip command.
    """
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module is there, but one of its own imports is broken: hide nothing
        raise MissingExtraError(
            f"{module} is needed here but not installed; run: pip install 'protoad[{extra}]'"
        ) from None
    except ImportError as error:  # there, but a shared library of the system is not
        raise MissingExtraError(f"{module} is installed but cannot be loaded: {error}") from error
    expected = _EXPECTED_ATTRIBUTE.get(module)
    if expected is not None and not hasattr(loaded, expected):
        raise MissingExtraError(
            f"{module} is installed but empty (broken); run: pip install --force-reinstall 'protoad[{extra}]'"
        )
    return loaded


def require_open3d() -> ModuleType:
    """Imports Open3D, which needs a libusb: that of the system, or the one that comes with the extra.

    Raises:
        MissingExtraError: if Open3D is absent or cannot be loaded.
    """
    with contextlib.suppress(ImportError, OSError):
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    return require("open3d", extra="open3d")
