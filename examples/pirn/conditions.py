"""Under which conditions a part may come: with everything, without its depth or colour, or with holes in its depth.

Each has a calibration of its own, so that a missing image or a shiny surface is no false alarm.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple, get_args

from pirn.config import PIRNConfig
from protoad.data import HoleKind, Prepared, PrepareSettings, Sample, lose_depth, prepare, prepare_colour, without_depth
from protoad.errors import DataError

__all__ = ["ALL_DEPTH", "NO_DEPTH", "Condition", "condition_of", "conditions", "imitate"]

NO_DEPTH, ALL_DEPTH = 1.0, 0.0
_STEPS = (0.2, 0.4, 0.6)


class Condition(NamedTuple):
    """What there is of a part.

    Attributes:
        modalities: that are looked at.
        lost: up to which share of the part is without depth: `ALL_DEPTH` for no more holes than the shots had, a step,
            or `NO_DEPTH`.
    """

    modalities: tuple[str, ...]
    lost: float = ALL_DEPTH

    @property
    def name(self) -> str:
        """Such as "rgb+normals", or "rgb+normals, up to 20% of the depth lost"."""
        seen = "+".join(self.modalities)
        return {ALL_DEPTH: seen, NO_DEPTH: f"{seen}, no depth"}.get(
            self.lost, f"{seen}, up to {self.lost:.0%} of the depth lost"
        )


def conditions(config: PIRNConfig) -> list[Condition]:
    """Those that a detector of this configuration copes with; the usual one first."""
    every = config.modalities
    alone = len(every) > 1 and not config.needs_both
    usual = [every, *((m,) for m in every if alone and m != "rgb")]
    found = [Condition(modalities) for modalities in usual]
    found += [Condition(one, lost) for one in usual for lost in _STEPS if _copes_with_holes(config, one)]
    return [*found, Condition(("rgb",), NO_DEPTH)] if "rgb" in every and not config.needs_both else found


def _copes_with_holes(config: PIRNConfig, modalities: tuple[str, ...]) -> bool:
    """Whether normals with holes are of use: filled ones, or where there is nothing else to go by."""
    return "normals" in modalities and (config.fill_holes or modalities == ("normals",))


def condition_of(config: PIRNConfig, name: str, *, colour: bool, lost: float) -> Condition:
    """The condition that a part comes under.

    Args:
        config: of the detector.
        name: of the part.
        colour: whether there is an image.
        lost: share of the part without depth, `Features.lost`; `NO_DEPTH` without a point cloud.

    Raises:
        DataError: if what there is of the part is not enough.
    """
    rgb = "rgb" in config.modalities and colour
    modalities = tuple(m for m in config.modalities if m != "rgb" or rgb)
    if config.needs_both and not rgb:
        raise DataError(f"{name}: its image is missing, and detector {config.detector} needs it with the depth")
    step = next((step for step in (ALL_DEPTH, *_STEPS) if lost <= step), NO_DEPTH)
    if "normals" in modalities and (step == ALL_DEPTH or (step < NO_DEPTH and _copes_with_holes(config, modalities))):
        return Condition(modalities, step)
    if rgb and not config.needs_both:
        return Condition(("rgb",), NO_DEPTH if lost else ALL_DEPTH)
    missing = "its image is missing" if config.modalities == ("rgb",) else f"{lost:.0%} of its depth is missing"
    raise DataError(f"{name}: {missing}, and this detector has nothing else to go by; scan the part again")


def imitate(part: Sample | Prepared, lost: float, settings: PrepareSettings, *, seed: int) -> list[Prepared]:
    """A good part as it might come with less of its depth: once for each kind of hole.

    Args:
        part: with all it has. One that is prepared already can be shown without its depth, but not with holes in it.
        lost: share of the depth, as in `Condition`.
        settings: of the preparation.
        seed: of the holes.

    Returns:
        Nothing if it cannot be shown so.
    """
    if lost == NO_DEPTH:
        return [without_depth(part) if isinstance(part, Prepared) else prepare_colour(part.rgb, settings.size)]
    if isinstance(part, Prepared):
        return [] if lost else [part]
    kinds: tuple[HoleKind, ...] = get_args(HoleKind)
    samples = (
        [lose_depth(part, lost, kind, seed=seed, plane_distance=settings.plane_distance) for kind in kinds]
        if lost
        else [part]
    )
    return [prepare(sample, **asdict(settings)) for sample in samples]
