"""`pirn study NAME`: questions about PIRN, each answered by one module's `run(out, seeds=..., quick=...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pirn.studies import large_anomaly

__all__ = ["STUDIES"]

# name on the command line -> what runs it; the first line of its docstring is the help
STUDIES: dict[str, Callable[..., Any]] = {"large-anomaly": large_anomaly.run}
