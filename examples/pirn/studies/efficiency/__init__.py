"""What does a detector cost: operations, parameters, time and memory, encoder by encoder (paper Table 4)?

One part at a time, 224 x 224 pixels, from prepared images to score and heatmaps. Pretrained encoders get random
weights: none of this depends on what they are, and none has to be fetched. How well it detects is not asked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import torch

from pirn.config import PIRNConfig
from pirn.studies.charts import check_plots
from pirn.studies.efficiency.bench import Bench, Effort, Seen, describe_device
from pirn.studies.efficiency.report import AS_PRINTED, OURS, VIT_B, write_report
from pirn.studies.rows import Rows

__all__ = ["DETECTORS", "ENCODERS", "run"]

ENCODERS = {
    "filter bank": "filter_bank",
    "MobileNetV2": "timm:mobilenetv2_100,weights=random",
    VIT_B: "timm:vit_base_patch14_dinov2.lvd142m,weights=random",
    "DINOv2 ViT-L/14": "timm:vit_large_patch14_dinov2.lvd142m,weights=random",
}
"""What a table calls an encoder -> its name."""

# both of PIRN's, then every rival, under the same whitened score
DETECTORS = {OURS: PIRNConfig(), AS_PRINTED: PIRNConfig().faithful()} | {
    name.replace("_", " "): PIRNConfig(detector=name)
    for name in get_args(get_type_hints(PIRNConfig)["detector"])
    if name != "pirn"
}
"""What a table calls a detector -> its settings."""

_NOT_QUICK = ("MobileNetV2", "DINOv2 ViT-L/14")
_QUICK = Effort(shots=3, repeats=3)


def run(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    quick: bool = False,
    encoders: Mapping[str, str] = ENCODERS,
    detectors: Mapping[str, PIRNConfig] = DETECTORS,
) -> None:
    """Measures detectors on this CPU, and on a GPU where torch finds one; what is in OUT already stays.

    Writes OUT/efficiency.csv, a row per device, encoder and detector, OUT/efficiency.md and OUT/efficiency.png.

    Args:
        out: folder to write to.
        seeds: the first is that of parts and weights, which change nothing of what is measured.
        quick: three detectors, two encoders, few shots and runs: no result.
        encoders: what the table calls them -> their names.
        detectors: what the table calls them -> their settings.

    Raises:
        DataError: if the CSV there is of something else.
        MissingExtraError: without matplotlib or timm.
    """
    check_plots()
    name = "efficiency-quick" if quick else "efficiency"
    if quick:
        encoders = {label: encoder for label, encoder in encoders.items() if label not in _NOT_QUICK}
        detectors = {label: detectors[label] for label in list(detectors)[:3]}
    effort = _QUICK if quick else Effort()
    rows = Rows(out / f"{name}.csv", key=("device", "encoder", "detector"))
    devices = {describe_device(torch.device(kind)): kind for kind in _kinds()}
    pieces = [(device, encoder, detector) for device in devices for encoder in encoders for detector in detectors]
    seen: tuple[str, Seen] | None = None
    for device, encoder, detector in rows.to_do(pieces):
        if seen is None or seen[0] != device:
            seen = device, Seen(effort, torch.device(devices[device]), seeds[0])
        bench = Bench.of(replace(detectors[detector], encoder=encoders[encoder]), seen[1])
        row = {"device": device, "kind": devices[device], "encoder": encoder, "detector": detector}
        row |= {"shots": effort.shots, "runs": effort.repeats, "random weights": int("=random" in encoders[encoder])}
        rows.add([row | bench.size | bench.operations() | bench.time(effort.repeats) | {"peak MB": bench.memory()}])
    write_report(out / name, rows.found)
    print(f"table: {out / name}.md   figure: {out / name}.png   rows: {rows.path}")


def _kinds() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
