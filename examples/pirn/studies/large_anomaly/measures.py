"""What an anomaly does to prototypes, update gates, reconstructions and heatmaps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity

from pirn.model import PIRN, LayerState
from protoad.data import Prepared
from protoad.detection import Detector, Features
from protoad.metrics import aupro, image_auroc, pixel_auroc
from protoad.ops import sinkhorn
from protoad.scoring import FUSED

__all__ = ["Head", "Row", "Seen", "detection", "look", "mechanism", "token_share", "told"]

Row = dict[str, Any]


class Head(NamedTuple):
    """A fitted score: the detector, its threshold at 5 % false rejects, and what the good test parts score."""

    detector: Detector
    threshold: float
    good: np.ndarray


class Seen(NamedTuple):
    """What refinement did: states per layer, update gates (b k) per layer and modality, contexts (b k d) as called."""

    states: list[LayerState]
    gates: dict[tuple[int, str], Tensor]
    contexts: list[Tensor]


def look(model: PIRN, features: Features) -> Seen:
    """Runs the model and notes what its refinement did."""
    gates: dict[tuple[int, str], Tensor] = {}
    contexts: list[Tensor] = []

    def keep_gate(key: tuple[int, str], _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        gates[key] = output.sigmoid().mean(-1)

    def keep_context(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        contexts.append(output)

    hooks = []
    for index, layer in enumerate(model.layers):
        if layer.aggregate is not None:
            hooks.append(layer.aggregate.register_forward_hook(keep_context))
        for modality, refine in layer.refine.items():
            hooks.append(refine.get_submodule("update").register_forward_hook(partial(keep_gate, (index, modality))))
    states = model.trace(features.tokens, features.mask)
    for hook in hooks:
        hook.remove()
    return Seen(states, gates, contexts)


@contextmanager
def told(model: PIRN, contexts: Sequence[Tensor] | None) -> Iterator[None]:
    """While it lasts, refinement hears these contexts in turn, whatever the tokens are; None: the tokens' own."""
    hooks, calls = [], count()
    if contexts is not None:

        def replay(_module: nn.Module, _inputs: Any, _output: Tensor) -> Tensor:
            return contexts[next(calls) % len(contexts)]

        hooks = [layer.aggregate.register_forward_hook(replay) for layer in model.layers if layer.aggregate is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mechanism(model: PIRN, features: Features, share: Tensor, clean: Seen) -> Row:
    """What the anomaly does to prototypes, gates and reconstructions; means over both modalities."""
    seen, still = look(model, features), copy.deepcopy(model)
    for layer in still.layers:
        layer.aggregate = None
    unrefined = still.trace(features.tokens, features.mask)[-1].tokens
    anomalous, normal = (share > 0.5) & features.mask, (share == 0) & features.mask
    figures = [
        _of_modality(model, m, features, (anomalous, normal), (seen, clean), unrefined[m]) for m in features.tokens
    ]
    row: Row = {"tokens": float(anomalous.sum() / features.mask.sum())}
    return row | {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}


def _of_modality(
    model: PIRN,
    modality: str,
    features: Features,
    masks: tuple[Tensor, Tensor],
    looks: tuple[Seen, Seen],
    unrefined: Tensor,
) -> Row:
    (anomalous, normal), seen, target = masks, looks[0], features.tokens[modality]
    start = model.prototypes[modality]
    now, twin = (one.states[-1].prototypes[modality] for one in looks)
    with_it = cosine_similarity(target, seen.states[-1].tokens[modality], dim=-1)
    gain = with_it - cosine_similarity(target, unrefined, dim=-1)
    length = start.norm(dim=-1)
    row = {
        "displacement": float(((now - start).norm(dim=-1) / length).mean()),
        "displacement by anomaly": float(((now - twin).norm(dim=-1) / length).mean()),
        "gain anomalous": float(gain[anomalous].mean()),
        "gain normal": float(gain[normal].mean()),
        "cosine anomalous": float(with_it[anomalous].mean()),
        "cosine normal": float(with_it[normal].mean()),
    }
    if seen.gates:
        row |= _gate_figures(model, modality, features, anomalous, looks)
    return row


def _gate_figures(model: PIRN, modality: str, features: Features, anomalous: Tensor, looks: tuple[Seen, Seen]) -> Row:
    """Update gates of the first layer: weighed by the share of a prototype's mass that anomalous tokens bring."""
    tokens = features.tokens[modality] / model.get_buffer(f"scale_{modality}")
    plan = sinkhorn(tokens, model.prototypes[modality], epsilon=model.config.epsilon, token_mask=features.mask).plan
    near = (plan * anomalous.unsqueeze(-1)).sum(1) / plan.sum(1)
    gate, twin = (one.gates[0, modality] for one in looks)
    return {
        "u near": float((near * gate).sum() / near.sum()),
        "u elsewhere": float(((1 - near) * gate).sum() / (1 - near).sum()),
        "u twin": float(twin.mean()),
    }


def token_share(parts: Sequence[Prepared], grid: tuple[int, int]) -> Tensor:
    """(b n) share of a token's pixels of the part that are anomalous."""
    part = torch.stack([p.foreground for p in parts])
    anomaly = torch.stack([p.mask for p in parts]) & part
    of_cell = [adaptive_avg_pool2d(area.float().unsqueeze(1), grid).flatten(1) for area in (anomaly, part)]
    return of_cell[0] / of_cell[1].clamp_min(1e-6)


def detection(head: Head, parts: Sequence[Prepared], features: Features) -> Row:
    """Image AUROC against the good test parts; pixel AUROC among the pixels of the parts; AUPRO; recalled area."""
    prediction = head.detector(features)
    maps = prediction.maps[FUSED].numpy()
    part, anomaly = (np.stack([getattr(p, name).numpy() for p in parts]) for name in ("foreground", "mask"))
    scores = np.concatenate([head.good, prediction.score.numpy()])
    labels = np.repeat([0, 1], [len(head.good), len(parts)])
    return {
        "image AUROC": image_auroc(scores, labels),
        "pixel AUROC": pixel_auroc(maps[part][None, None], anomaly[part][None, None]),
        "AUPRO": aupro(maps, anomaly),
        "recall": float((maps > head.threshold)[anomaly & part].mean()),
        "false rejects": float((head.good > head.threshold).mean()),
    }
