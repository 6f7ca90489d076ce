"""`pirn study NAME`: questions about PIRN, each answered by one module's `run(out, seeds=..., quick=...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pirn.studies import figures, large_anomaly, missing

__all__ = ["STUDIES"]

STUDIES: dict[str, Callable[..., Any]] = {
    "large-anomaly": large_anomaly.run,
    "missing": missing.run,
    "figures": figures.run,
}
