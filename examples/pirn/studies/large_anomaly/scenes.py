"""The parts of the study: good ones to learn from, to set a threshold and to test on, and these with anomalies."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pirn.config import PIRNConfig
from pirn.detector import build_extractor
from pirn.studies.large_anomaly.spoiling import KINDS, find_texture, spoil
from protoad.data import PART_TYPES, Prepared, Sample, prepare, render_part
from protoad.detection import FeatureExtractor, Features

__all__ = ["QUICK", "Scenes", "Scope"]


class Scope(NamedTuple):
    """How much is measured.

    Attributes:
        name: of the files.
        parts: kinds of synthetic parts.
        fractions: of a part's surface that are anomalous.
        shots: good parts to learn from.
        held_out: good parts that set the threshold, as many as a false reject rate of 5 % needs.
        tested: good parts to test on, each also with every size of anomaly.
        long_epochs: of the paper's schedule.
        size: of the images, pixels.
    """

    name: str = "large-anomaly"
    parts: tuple[str, ...] = ("cookie", "peach", "tile")
    fractions: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8)
    shots: int = 5
    held_out: int = 19
    tested: int = 9
    long_epochs: int = 60
    size: int = 128


QUICK = Scope("large-anomaly-quick", ("cookie",), (0.1, 0.4, 0.8), tested=6, long_epochs=20, size=96)


class Scenes(NamedTuple):
    """What is seen of one part with one seed.

    Attributes:
        identity: part and seed.
        config: the default settings of this seed.
        extractor: fitted to the shots.
        parts: "shots", "held out", "good", and per fraction the good ones with an anomaly.
        features: of the same.
    """

    identity: dict[str, Any]
    config: PIRNConfig
    extractor: FeatureExtractor
    parts: dict[Any, list[Prepared]]
    features: dict[Any, Features]

    @classmethod
    def of(cls, part: str, seed: int, scope: Scope) -> Scenes:
        """Draws the parts and encodes them."""
        config = PIRNConfig(image_size=scope.size, seed=seed)

        def good(kind: str, group: int, count: int) -> list[Sample]:
            first = 100_000 * seed + 1000 * group
            return [render_part(kind, seed=first + i, size=scope.size, product=seed) for i in range(count)]

        prepared = partial(map, partial(prepare, size=scope.size))
        clean, others = good(part, 2, scope.tested), [other for other in PART_TYPES if other != part]
        parts: dict[Any, list[Prepared]] = {
            "shots": list(prepared(good(part, 0, scope.shots))),
            "held out": list(prepared(good(part, 1, scope.held_out))),
            "good": list(prepared(clean)),
        }
        strangers = [good(others[i % len(others)], 3 + i, 1)[0] for i in range(scope.tested)]
        textures = [find_texture(s, prepare(s, scope.size).foreground.numpy()) for s in strangers]
        for fraction in scope.fractions:
            spoiled = [
                spoil(
                    sample,
                    parts["good"][i].foreground.numpy(),
                    KINDS[i % len(KINDS)],
                    fraction=fraction,
                    texture=textures[i],
                    rng=np.random.default_rng([seed, i]),  # a larger anomaly grows out of the smaller one
                )
                for i, sample in enumerate(clean)
            ]
            parts[fraction] = list(prepared(spoiled))
        extractor = build_extractor(config).fit(parts["shots"])
        return cls({"part": part, "seed": seed}, config, extractor, parts, {k: extractor(p) for k, p in parts.items()})
