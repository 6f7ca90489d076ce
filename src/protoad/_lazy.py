"""Optional dependencies, imported only when something needs them.

They may be absent, cost seconds and memory to import, or be broken: none of that may touch `import protoad`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from protoad.errors import MissingExtraError

__all__ = ["require"]

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
