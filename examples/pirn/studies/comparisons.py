"""The paper's tables, and a few more questions, as lines to measure on equal terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COMPARISONS", "DINO", "Comparison", "Line"]


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Args:
        label: what it is called.
        settings: changes to the base.
        printed: the paper's name for it, in its table.
        x: where it stands on the axis, for a line of something that can be counted.
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    printed: str = ""
    x: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A question, and the lines that answer it.

    Args:
        question: in a sentence.
        lines: to measure; the one called `reference` is what the others are compared with, pair by pair.
        reference: label of a line.
        table: of the paper, whose printed numbers stand beside ours.
        shots: good parts to learn from.
        axis: what `x` of the lines counts.
        scores: under which all lines are judged; () leaves it to the base, or to the lines.
        training: what the last epoch reported and the table is to show, such as "loss".
        by_category: a column per category instead of one per metric.
    """

    question: str
    lines: tuple[Line, ...]
    reference: str
    table: int | None = None
    shots: tuple[int | None, ...] = (10,)
    axis: str = ""
    scores: tuple[str, ...] = ("whitened", "cosine")
    training: tuple[str, ...] = ()
    by_category: bool = False

    def settings(self, line: Line, score: str) -> dict[str, Any]:
        """What a line changes of the base, judged by one of the scores."""
        return {**line.settings, **({"score": score} if score else {})}


DINO = {
    "DINOv1 ViT-B/8": "timm:vit_base_patch8_224.dino",
    "DINOv2 ViT-B/14": "timm:vit_base_patch14_dinov2.lvd142m",
    "DINOv2 ViT-L/14": "timm:vit_large_patch14_dinov2.lvd142m",
}
_MOBILENET = "timm:mobilenetv2_100,pad_type=same,mean=0.5,std=0.5"
_PRINTED = {"residual": "purified"}
_OFF = {"aggregation": "none", "mnc": False, "assignment": "attention"}  # docs/choices.md: what "off" means
_DETECTORS = (  # label, name, its authors' own score, the paper's name
    ("PIRN", "pirn", "cosine", "Ours"),
    ("nearest neighbours", "nearest_neighbour", "cosine", ""),
    ("Gaussian", "gaussian", "cosine", ""),
    ("PatchCore", "patchcore", "own", ""),
    ("PaDiM", "padim", "own", ""),
    ("M3DM", "m3dm", "own", "M3DM"),
    ("CFM", "cfm", "own", "CFM"),
    ("INP-Former", "inp_former", "own", "INP-Former"),
    ("AST", "ast", "own", "AST"),
)
_FUSED_BY_SCORE = "M3DM"  # under another score than its own it is PatchCore, of the same banks


def _scored(label: str, detector: str, score: str, printed: str = "") -> Line:
    return Line(f"{label}, {score}", {"detector": detector, "score": score}, printed)


_EQUAL_TERMS = (
    *(_scored(label, detector, "whitened") for label, detector, *_ in _DETECTORS if label != _FUSED_BY_SCORE),
    *(_scored(label, detector, own, printed) for label, detector, own, printed in _DETECTORS),
    Line("BTF (with FPFH), own", {"detector": "btf", "score": "own", "encoder_normals": "fpfh"}, "BTF"),
)
_EVERY_SCORE = tuple(
    _scored(label, detector, score)
    for label, detector, own, _ in _DETECTORS
    for score in dict.fromkeys((own, "cosine", "conditional", "whitened"))
    if score == own or label != _FUSED_BY_SCORE
)

COMPARISONS: dict[str, Comparison] = {
    "shots": Comparison(
        "How do detectors compare, learning from few good parts?",
        _EQUAL_TERMS,
        "PIRN, whitened",
        1,
        (5, 10),
        scores=(),
    ),
    "components": Comparison(
        "What do balanced transport (BPA), refinement (APR) and exchange (MNC) contribute?",
        (
            Line("none of them", _OFF, "BPA -, APR -, MNC -"),
            Line("APR, MNC", {"assignment": "attention"}, "BPA -, APR +, MNC +"),
            Line("BPA, MNC", {"aggregation": "none"}, "BPA +, APR -, MNC +"),
            Line("BPA, APR", {"mnc": False}, "BPA +, APR +, MNC -"),
            Line("BPA, APR, MNC", {}, "BPA +, APR +, MNC +"),
            Line("Gaussian", {"detector": "gaussian"}),
        ),
        "BPA, APR, MNC",
        2,
    ),
    "modality": Comparison(
        "What does each modality see alone?",
        (
            Line("RGB", {"modality": "rgb"}, "RGB-only"),
            Line("normals", {"modality": "normals"}, "Surface Normals-only"),
            Line("RGB and normals", {}, "RGB + Surface Normals"),
        ),
        "RGB and normals",
        3,
        (5, 10),
    ),
    "prototypes": Comparison(
        "How many prototypes?",
        tuple(Line(f"K = {k}", {"num_prototypes": k}, "" if k == 30 else f"K = {k}", k) for k in (5, 10, 30, 50, 100)),
        "K = 30",
        5,
        axis="prototypes per modality, K",
    ),
    "layers": Comparison(
        "How many decoder layers?",
        tuple(Line(f"L = {n}", {"num_layers": n}, f"L = {n}", n) for n in (1, 2, 4, 8)),
        "L = 2",
        6,
        axis="decoder layers, L",
    ),
    "aggregation": Comparison(
        "What should prototypes be refined with?",
        (
            Line("no refinement", {"aggregation": "none"}, "w/o APR module"),
            Line("mean of all tokens", {"aggregation": "mean"}, "Global Averaging"),
            Line("mean of the nearest", {"aggregation": "topk"}, "Top-k Averaging"),
            Line("transport", {}, "Balanced Optimal Transport"),
        ),
        "transport",
        7,
    ),
    "assignment": Comparison(
        "How should tokens be assigned to prototypes?",
        (
            Line("softmax", {"assignment": "softmax"}, "Softmax Attention"),
            Line("linear", {"assignment": "linear"}, "Linear Attention"),
            Line("sigmoid", {"assignment": "sigmoid"}, "Sigmoid Attention"),
            Line("transport", {}, "Balanced Optimal Transport"),
        ),
        "transport",
        9,
    ),
    "backbone": Comparison(
        "How much do the features matter?",
        (
            *(Line(name, {"encoder": spec}, name) for name, spec in DINO.items()),
            Line("MobileNetV2", {"encoder": _MOBILENET}),
            Line("filter bank", {"encoder": "filter_bank"}),
            *(
                Line(f"Gaussian on {name}", {"encoder": spec, "detector": "gaussian"})
                for name, spec in {"MobileNetV2": _MOBILENET, "the filter bank": "filter_bank"}.items()
            ),
        ),
        "filter bank",
        10,
    ),
    "category": Comparison(
        "How do detectors compare, category by category?",
        _EQUAL_TERMS,
        "PIRN, whitened",
        11,
        scores=(),
        by_category=True,
    ),
    "leak": Comparison(
        "Does the input pass by the prototypes, and what stops it?",
        (
            Line("no residual, 10 epochs", {"residual": "none", "epochs": 10}),
            Line("no residual, 60 epochs", {"residual": "none", "epochs": 60}),
            Line("residual, 10 epochs", {**_PRINTED, "epochs": 10}),
            Line("residual, 60 epochs", {**_PRINTED, "epochs": 60}),
            Line("residual, layer norm, 10 epochs", {**_PRINTED, "layer_norm": True, "epochs": 10}),
            Line("residual, deep supervision, 10 epochs", {**_PRINTED, "deep_supervision": True, "epochs": 10}),
            Line(
                "residual, both, 60 epochs",
                {**_PRINTED, "layer_norm": True, "deep_supervision": True, "epochs": 60},
            ),
        ),
        "no residual, 10 epochs",
        training=("loss", "leak"),
    ),
    "background": Comparison(
        "Should only tokens on the part count?",
        tuple(
            Line(f"{label}, {'tokens on the part' if on else 'all tokens'}", {"foreground": on, **settings})
            for label, settings in (
                ("PIRN", {}),
                ("PIRN, residual", _PRINTED),
                ("nearest neighbours", {"detector": "nearest_neighbour"}),
                ("Gaussian", {"detector": "gaussian"}),
            )
            for on in (True, False)
        ),
        "PIRN, tokens on the part",
    ),
    "score": Comparison(
        "How much is the score, and how much the detector?",
        _EVERY_SCORE,
        "PIRN, whitened",
        scores=(),
    ),
}
"""Name -> what is compared."""
