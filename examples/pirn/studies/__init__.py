"""`pirn study NAME`: questions about PIRN and its rivals, each answered by one command."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from pirn.studies import efficiency, figures, large_anomaly, missing
from pirn.studies.comparing import compare, measure_all
from pirn.studies.comparisons import COMPARISONS
from pirn.studies.request import Request
from protoad.errors import ConfigError, ProtoadError

__all__ = ["STUDIES", "run_study"]


def _of_its_own(run: Callable[..., Any], request: Request) -> None:
    """A study that makes its own synthetic parts.

    Raises:
        ConfigError: if it is asked to look at others.
    """
    if not request.leaves_it_to_the_study:
        raise ConfigError("this study draws its own parts and chooses its settings; give it --seeds and --quick alone")
    run(request.out, seeds=request.seeds, quick=request.quick)


STUDIES: dict[str, Callable[[Request], None]] = {
    **{name: partial(compare, name) for name in COMPARISONS},
    "efficiency": partial(_of_its_own, efficiency.run),
    "large-anomaly": partial(_of_its_own, large_anomaly.run),
    "missing": partial(_of_its_own, missing.run),
    "figures": partial(_of_its_own, figures.run),
}
"""Name -> what answers it."""


def run_study(name: str, request: Request) -> None:
    """Runs a study, or for "all" every one that can look at the data asked for; one that fails does not stop the rest.

    Raises:
        ProtoadError: of the study; of several, the first that failed.
    """
    if name != "all":
        if name not in COMPARISONS and request.jobs is not None:
            raise ConfigError(f"jobs: study {name} works in one process; leave it out")
        STUDIES[name](request)
        return
    with contextlib.suppress(ProtoadError):  # the study that needs what failed will say so
        measure_all(list(COMPARISONS), request)
    chosen = [one for one in STUDIES if one in COMPARISONS or request.leaves_it_to_the_study]
    if len(chosen) < len(STUDIES):
        print(f"left out, for they draw their own parts: {', '.join(one for one in STUDIES if one not in chosen)}")
    failed = []
    for study in chosen:
        print(f"study {study}", flush=True)
        try:
            STUDIES[study](request)
        except ProtoadError as error:
            print(f"study {study}: {error}", flush=True)
            failed.append(error)
    if failed:
        raise failed[0]
