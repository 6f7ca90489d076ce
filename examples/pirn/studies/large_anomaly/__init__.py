"""Do large anomalies get into the prototypes that are refined at test time, and does it matter?

The paper says that transport and the refiner's gate keep them out (section 3.3, appendix C.2, Fig. 6). Good parts get
an anomaly over 10 to 80 % of their surface; what refinement does to the prototypes is compared with what it does on the
same part without the anomaly, its twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pirn.detector import with_head
from pirn.model import PIRN
from pirn.studies.charts import check_plots
from pirn.studies.large_anomaly.measures import Head, Row, detection, look, mechanism, token_share, told
from pirn.studies.large_anomaly.report import write_report
from pirn.studies.large_anomaly.scenes import QUICK, Scenes, Scope
from pirn.studies.rows import Rows
from protoad.calibration import calibrate
from protoad.scoring import ScoreKind

__all__ = ["run"]

SCORES: tuple[ScoreKind, ...] = ("cosine", "whitened")
_FALSE_REJECT_RATE = 0.05


def _trainings(scope: Scope) -> dict[str, dict[str, Any]]:
    """What is trained: name -> changes to the default settings."""
    return {
        "none": {"aggregation": "none"},
        "bias 0": {"update_bias": 0.0},
        "bias 3": {},
        "bias 0, long": {"update_bias": 0.0, "epochs": scope.long_epochs},
    }


def run(out: Path, *, seeds: Sequence[int] = range(5), quick: bool = False, scope: Scope | None = None) -> None:
    """Measures how large anomalies act on refinement; what is in OUT already is not measured again.

    Writes OUT/NAME.csv, a row per seed, part, setting and size of the anomaly, OUT/NAME.md and OUT/NAME.png.

    Args:
        out: folder to write to.
        seeds: of parts, shots and training.
        quick: one part, few images, one seed: no result.
        scope: what to measure instead.

    Raises:
        DataError: if the CSV there is of something else.
        MissingExtraError: without matplotlib.
    """
    check_plots()
    scope = scope or (QUICK if quick else Scope())
    path = out / f"{scope.name}.csv"
    rows = Rows(path, key=("part", "seed", "training"))
    cells = [(part, seed) for part in scope.parts for seed in (seeds[:1] if quick else seeds)]
    scenes: tuple[Any, ...] = ()
    for part, seed, name in rows.to_do([(*cell, name) for cell in cells for name in _trainings(scope)]):
        if scenes[:2] != (part, seed):
            scenes = (part, seed, Scenes.of(part, seed, scope))
        rows.add(_measure(scenes[2], name, scope))
    write_report(out / scope.name, rows.found)
    print(f"tables: {out / scope.name}.md   figure: {out / scope.name}.png   rows: {path}")


def _measure(scenes: Scenes, training: str, scope: Scope) -> list[Row]:
    """Trains once and gives the rows of all settings that share this training."""
    config = replace(scenes.config, **_trainings(scope)[training])
    dims = {modality: encoder.dim for modality, encoder in scenes.extractor.encoders.items()}
    model = PIRN(dims, config).fit(scenes.features["shots"])
    heads = _heads(scenes, model)
    rows = _rows(scenes, model, heads, training)
    if config.aggregation != "none":
        rows += _rows(scenes, model, heads, f"{training}, twin", told_by_twin=True)
        guarded = PIRN(dims, replace(config, guard=True))
        guarded.load_state_dict(model.state_dict(), strict=False)  # all but the limits of the guard
        guarded.eval().fit_guard(scenes.features["shots"])
        rows += _rows(scenes, guarded, _heads(scenes, guarded), f"{training}, guard")
    return [{**scenes.identity, "training": training, **row} for row in rows]


def _heads(scenes: Scenes, model: PIRN) -> dict[str, Head]:
    heads: dict[str, Head] = {}
    for kind in SCORES:
        detector = with_head(model, scenes.extractor, replace(model.config, score=kind))
        detector.fit_score(scenes.features["shots"])
        held_out = detector(scenes.features["held out"]).score.tolist()
        threshold = calibrate(held_out, false_reject_rate=_FALSE_REJECT_RATE).threshold
        heads[kind] = Head(detector, threshold, detector(scenes.features["good"]).score.numpy())
    return heads


@torch.no_grad()
def _rows(
    scenes: Scenes, model: PIRN, heads: Mapping[str, Head], setting: str, *, told_by_twin: bool = False
) -> list[Row]:
    """One row per size of the anomaly.

    With `told_by_twin` prototypes are refined by the contexts of the part without its anomaly, as by a perfect guard.
    """
    clean = look(model, scenes.features["good"])
    rows = []
    for fraction in (name for name in scenes.parts if isinstance(name, float)):
        parts, features = scenes.parts[fraction], scenes.features[fraction]
        row: Row = {"setting": setting, "fraction": fraction}
        with told(model, clean.contexts if told_by_twin else None):
            row |= mechanism(model, features, token_share(parts, scenes.extractor.grid), clean)
            for kind, head in heads.items():
                row |= {f"{kind} {name}": value for name, value in detection(head, parts, features).items()}
        rows.append(row)
    return rows
