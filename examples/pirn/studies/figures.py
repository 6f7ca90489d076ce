"""The paper's pictures of trained detectors: what do prototypes, transport and the exchange look like?

PIRN learns ten good synthetic parts, and once more with softmax in place of transport. Pictures are drawn of both and
of the yardsticks, with the figures that can be read off them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pirn.config import PIRNConfig
from pirn.detector import with_head, yardsticks
from pirn.experiment import open_split, prepared_parts, train_category
from pirn.model import PIRN, LayerState
from pirn.pictures import to_picture
from pirn.studies.charts import check_plots
from pirn.studies.large_anomaly.measures import token_share
from pirn.studies.rows import Row, Rows
from protoad.calibration import calibrate
from protoad.data import Prepared, write_dataset, write_rgb
from protoad.detection import Detector, Features, Prediction
from protoad.metrics import aupro
from protoad.ops import unit
from protoad.scoring import FUSED
from protoad.viz import (
    GridRow,
    displacement,
    effective_prototypes,
    graph_edges,
    prototype_usage,
    sample_grid,
    score_distributions,
    score_overlap,
    token_projection,
    transport_overlay,
    write_figure,
)

__all__ = ["run"]

_RATE = 0.05
_SHOTS = 10
_YARDSTICKS = {"nearest_neighbour": "nearest neighbour", "gaussian": "Gaussian"}
_PROJECTED = 1500  # tokens at most
_ROWS = 4  # parts in a grid
_GRID_WIDTH = 780  # pixels


class _Scene(NamedTuple):
    """What is drawn of one part and seed; tokens and plans are those of the RGB branch.

    Attributes:
        models: assignment -> PIRN.
        detectors: name -> detector, of these models and the yardsticks, fitted to the same shots.
        grid: tokens (down, across).
        parts: of the test split; defects, labels and features in the same order.
        anomalous: (b n) bool, tokens most of whose pixels are anomalous.
        normal: (b n) bool, tokens without an anomalous pixel.
        states: assignment -> what each layer did with the test parts.
        plans: assignment -> (b n k) of the first layer, which sees the same tokens under both.
        thresholds: detector -> that for 5 % false rejects.
        predictions: detector -> of the test parts.
    """

    models: dict[str, PIRN]
    detectors: dict[str, Detector]
    grid: tuple[int, int]
    parts: list[Prepared]
    defects: list[str]
    labels: np.ndarray
    features: Features
    anomalous: Tensor
    normal: Tensor
    states: dict[str, list[LayerState]]
    plans: dict[str, Tensor]
    thresholds: dict[str, float]
    predictions: dict[str, Prediction]

    @property
    def worst(self) -> int:
        """The part with the most anomalous tokens."""
        return int(self.anomalous.sum(1).argmax())


def run(out: Path, *, seeds: Sequence[int] = range(5), quick: bool = False) -> None:
    """Draws the pictures of detectors of synthetic parts; what is in OUT already is not drawn again.

    Writes OUT/figures/PART-SEED-PICTURE.png, OUT/figures.csv, a row of figures per seed and part, and OUT/figures.md,
    which shows the pictures and says what is to be seen.

    Args:
        out: folder to write to.
        seeds: of parts, shots and training.
        quick: one part, few and small images, the first seed: no result.

    Raises:
        DataError: if the CSV there is of something else.
        MissingExtraError: without matplotlib or scikit-learn.
    """
    check_plots("sklearn")
    name = "figures-quick" if quick else "figures"
    rows = Rows(out / f"{name}.csv", key=("seed", "part"))
    rows.found = [row for row in rows.found if all((out / path).is_file() for path in _paths(name, row))]
    parts = ("cookie",) if quick else ("cookie", "gland")
    with tempfile.TemporaryDirectory() as scratch:
        for seed, part in rows.to_do([(seed, part) for seed in (seeds[:1] if quick else seeds) for part in parts]):
            scene = _scene(Path(scratch) / str(seed), part, seed, quick=quick)
            row: Row = {"seed": seed, "part": part}
            for path, picture in zip(_paths(name, row), _PICTURES.values(), strict=True):
                row |= picture(out / path, scene)
            rows.add([row])
    rows.found.sort(key=lambda row: (row["part"], row["seed"]))
    (out / f"{name}.md").write_text(_page(name, rows.found), encoding="utf-8")
    print(f"pictures: {out / name}.md   figures: {rows.path}")


def _paths(name: str, row: Mapping[str, Any]) -> list[Path]:
    """Of the pictures of one part and seed, in the folder that is written to."""
    return [Path(name) / f"{row['part']}-{row['seed']}-{picture}.png" for picture in _PICTURES]


def _scene(root: Path, part: str, seed: int, *, quick: bool) -> _Scene:
    config = PIRNConfig(seed=seed)
    good, each, size = 20, 4, 256
    if quick:
        good, each, size = 6, 1, 96
        config = replace(config, image_size=size, epochs=2, num_prototypes=8)
    counts = {"train": _SHOTS, "validation": 19, "test_good": good, "test_per_defect": each}
    write_dataset(root, parts=(part,), seed=seed, size=size, **counts)
    pirn, shots = train_category(config, root, part, _SHOTS)
    extractor = pirn.extractor
    assert isinstance(pirn.model, PIRN)  # the default detector
    models = {"transport": pirn.model, "softmax": _with_softmax(pirn.model, shots)}
    with_softmax = with_head(models["softmax"], extractor, config).fit_score(shots)
    detectors = {"PIRN": pirn.detector, "PIRN, softmax": with_softmax}
    for key, rival in yardsticks(extractor, config).items():
        detectors[_YARDSTICKS[key]] = rival.fit(shots)
    test, held_out = (open_split(config, root, part, split, pirn.source) for split in ("test", "validation"))
    parts, others = (list(prepared_parts(s, range(len(s)), config)) for s in (test, held_out))
    features, unseen = extractor(parts), extractor(others)
    share = token_share(parts, extractor.grid)
    states, plans = {}, {}
    with torch.no_grad():
        for assignment, model in models.items():
            states[assignment] = model.trace(features.tokens, features.mask)
            refined = states[assignment][0].prototypes["rgb"]
            assign: Any = model.layers[0].assign["rgb"]
            plans[assignment] = assign.plan(features.tokens["rgb"], refined, features.mask)
    return _Scene(
        models,
        detectors,
        extractor.grid,
        parts,
        test.defects,
        np.array(test.labels),
        features,
        (share > 0.5) & features.mask,
        (share == 0) & features.mask,
        states,
        plans,
        {n: calibrate(d(unseen).score.tolist(), false_reject_rate=_RATE).threshold for n, d in detectors.items()},
        {name: detector(features) for name, detector in detectors.items()},
    )


def _with_softmax(model: PIRN, shots: Features) -> PIRN:
    """The same as the model but for its assignment, trained alike."""
    dims = {modality: tokens.shape[-1] for modality, tokens in shots.tokens.items()}
    return PIRN(dims, replace(model.config, assignment="softmax")).fit(shots)


def _scores(path: Path, scene: _Scene) -> Row:
    scores = {name: said.score for name, said in scene.predictions.items()}
    write_figure(path, score_distributions(scores, scene.labels, threshold=scene.thresholds))
    return {f"overlap, {name}": score_overlap(values, scene.labels) for name, values in scores.items()}


def _usage(path: Path, scene: _Scene) -> Row:
    good = torch.from_numpy(scene.labels == 0)
    plans = {name: plan[good] for name, plan in scene.plans.items()}
    write_figure(path, prototype_usage(plans))
    row: Row = {"prototypes": next(iter(plans.values())).shape[-1]}
    for name, plan in plans.items():
        mass = plan.sum((0, 1)) / plan.sum() * plan.shape[-1]
        row |= {f"{name}, in effect by mass": effective_prototypes(plan)}
        row |= {f"{name}, in effect by tokens": effective_prototypes(plan, owners=True)}
        row |= {f"{name}, least share": float(mass.min()), f"{name}, largest share": float(mass.max())}
    return row


def _projection(path: Path, scene: _Scene, method: Any = "pca") -> Row:
    """Tokens of good parts, spread over all of them, as directions, since transport compares them by cosine."""
    kept = scene.features.mask & torch.from_numpy(scene.labels == 0)[:, None]
    chosen = kept.flatten().nonzero()[:, 0]
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(_PROJECTED, len(chosen))).long()]
    tokens = unit(scene.features.tokens["rgb"].flatten(0, 1)[chosen])
    prototypes = {name: unit(states[0].prototypes["rgb"].mean(0)) for name, states in scene.states.items()}
    plans = {name: plan.flatten(0, 1)[chosen] for name, plan in scene.plans.items()}
    write_figure(path, token_projection(tokens, prototypes, plans=plans, method=method))
    return {}


def _neighbourhoods(path: Path, scene: _Scene) -> Row:
    return _projection(path, scene, "tsne")


def _displacement(path: Path, scene: _Scene) -> Row:
    last, chosen = scene.states["transport"][-1], scene.anomalous | scene.normal
    chosen = chosen & torch.from_numpy(scene.labels == 1)[:, None]
    before, after = (unit(z[chosen]) for z in (scene.features.tokens["rgb"], last.tokens["rgb"]))
    anomalous = scene.anomalous[chosen]
    write_figure(path, displacement(before, after, unit(last.prototypes["rgb"].mean(0)), anomalous))
    lengths = (after - before).norm(dim=-1)
    return {
        "displacement, normal": float(lengths[~anomalous].mean()),
        "displacement, anomalous": float(lengths[anomalous].mean()),
        "displacement, overlap": score_overlap(lengths, anomalous),
    }


def _overlay(path: Path, scene: _Scene) -> Row:
    part, plan = scene.parts[scene.worst], scene.plans["transport"][scene.worst]
    write_figure(path, transport_overlay(to_picture(part.rgb), plan, scene.grid, mask=part.mask.numpy()))
    among = torch.special.entr(plan).sum(-1).exp()
    groups = {"normal": scene.normal[scene.worst], "anomalous": scene.anomalous[scene.worst]}
    return {f"shared among, {name}": float(among[group].mean()) for name, group in groups.items()}


def _graph(path: Path, scene: _Scene) -> Row:
    model, last = scene.models["transport"], scene.states["transport"][-1].prototypes
    align = model.layers[-1].align
    assert align is not None  # there are two modalities
    with torch.no_grad():
        attention = align.attention(last["rgb"], last["normals"])[scene.worst]
    write_figure(path, graph_edges(last["rgb"][scene.worst], last["normals"][scene.worst], attention))
    mean, k = attention.mean(0), len(attention[0]) // 2
    return {
        "attention, RGB to normals": float(mean[:k, k:].sum(1).mean()),
        "attention, normals to RGB": float(mean[k:, :k].sum(1).mean()),
        "attention, largest edge": float(torch.max(mean[:k, k:].max(), mean[k:, :k].max())),
        "attention, alike": 1 / (model.config.num_neighbors + 1),
    }


def _methods(path: Path, scene: _Scene) -> Row:
    """The heatmaps of all detectors side by side, each on the scale of its own."""
    _write_grid(path, scene, ["rgb", *scene.detectors, "mask"])
    maps = {name: said.maps[FUSED].numpy() for name, said in scene.predictions.items()}
    masks = np.stack([part.mask.numpy() for part in scene.parts])
    return {f"AUPRO, {name}": aupro(heatmaps, masks) for name, heatmaps in maps.items()}


def _branches(path: Path, scene: _Scene) -> Row:
    _write_grid(path, scene, ["rgb", "normals", "rgb_map", "normals_map", "fused_map", "mask"])
    return {}


def _write_grid(path: Path, scene: _Scene, columns: Sequence[str]) -> None:
    branches = {"rgb_map": "rgb", "normals_map": "normals", "fused_map": FUSED}
    rows = []
    good = scene.defects[int(np.flatnonzero(scene.labels == 0)[0])]
    for index in [scene.defects.index(kind) for kind in dict.fromkeys([good, *scene.defects])][:_ROWS]:
        part = scene.parts[index]
        maps = {column: scene.predictions["PIRN"].maps[name][index].numpy() for column, name in branches.items()}
        others = {name: said.maps[FUSED][index].numpy() for name, said in scene.predictions.items()}
        pictures = {"rgb": to_picture(part.rgb), "normals": to_picture(part.normals), "mask": part.mask.numpy()}
        rows.append(GridRow(scene.defects[index], others=others, **pictures, **maps))
    limits = {column: scene.detectors["PIRN"].heatmap_range(name) for column, name in branches.items()}
    limits |= {name: detector.heatmap_range() for name, detector in scene.detectors.items()}
    picture = torch.from_numpy(sample_grid(rows, columns=columns, limits=limits)).permute(2, 0, 1)
    height = round(picture.shape[1] * _GRID_WIDTH / picture.shape[2])
    smaller = interpolate(picture[None].float(), (height, _GRID_WIDTH), mode="area")[0]
    write_rgb(path, to_picture(smaller / 255))


_PICTURES = {
    "scores": _scores,
    "usage": _usage,
    "projection": _projection,
    "neighbourhoods": _neighbourhoods,
    "displacement": _displacement,
    "overlay": _overlay,
    "graph": _graph,
    "methods": _methods,
    "branches": _branches,
}
_SAID = {
    "scores": "Scores of the test parts. The least error that a threshold can leave (overlap; 0: separated) is "
    "{overlap, PIRN:.2f} for PIRN, {overlap, PIRN, softmax:.2f} with softmax, {overlap, nearest neighbour:.2f} for "
    "nearest neighbours, {overlap, Gaussian:.2f} for the Gaussian. The thresholds drawn come from 19 held-out good "
    "parts, for 5 % false rejects.",
    "usage": "Of {prototypes} prototypes, {transport, in effect by mass:.1f} are in effect by mass under transport and "
    "{softmax, in effect by mass:.1f} under softmax; by tokens {transport, in effect by tokens:.1f} and "
    "{softmax, in effect by tokens:.1f}. RGB branch, first layer, good test parts.",
    "projection": "The tokens of good test parts as directions, in the plane of their largest variance. Under softmax "
    "the least used prototype has {softmax, least share:.2f} of an equal share and the most used one "
    "{softmax, largest share:.2f} of it; under transport {transport, least share:.2f} and "
    "{transport, largest share:.2f}.",
    "neighbourhoods": "The same tokens and prototypes by t-SNE.",
    "displacement": "From tokens to their reconstructions, as directions: {displacement, normal:.3f} on average for "
    "normal tokens, {displacement, anomalous:.3f} for anomalous ones, in the full space; their overlap is "
    "{displacement, overlap:.2f}. Defective test parts.",
    "overlay": "The part with the most anomalous tokens. A normal token of it is shared among "
    "{shared among, normal:.1f} prototypes on average, an anomalous one among {shared among, anomalous:.1f}.",
    "graph": "On the same part, prototypes of RGB pay {attention, RGB to normals:.0%} of their attention to normals, "
    "and {attention, normals to RGB:.0%} the other way. The largest edge has {attention, largest edge:.2f}; equal "
    "attention to all neighbours and itself would be {attention, alike:.2f}.",
    "methods": "One good part and one of three kinds of defects; each detector on its own scale. AUPRO over all test "
    "parts: PIRN {AUPRO, PIRN:.3f}, with softmax {AUPRO, PIRN, softmax:.3f}, nearest neighbours "
    "{AUPRO, nearest neighbour:.3f}, Gaussian {AUPRO, Gaussian:.3f}.",
    "branches": "The same parts as PIRN's branches see them.",
}


def _page(name: str, rows: Sequence[Row]) -> str:
    lines = ["# Pictures of trained detectors", ""]
    lines += [f"Synthetic parts, {_SHOTS} shots, PIRN beside the same with softmax in place of transport.", ""]
    for row in rows:
        lines += [f"## {row['part']}, seed {row['seed']}", ""]
        for path, (picture, said) in zip(_paths(name, row), _SAID.items(), strict=True):
            lines += [f"![{picture}]({path.as_posix()})", "", said.format_map(row), ""]
    return "\n".join(lines)
