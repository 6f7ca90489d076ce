"""Everything that can be chosen about a PIRN detector; the fields are the command line's flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from protoad_detectors import NEEDS_BOTH

from protoad.data import PrepareSettings, plane_distance
from protoad.encoders import looks_at
from protoad.errors import CheckpointError, ConfigError

__all__ = ["PIRNConfig"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PIRNConfig:
    """Settings of PIRN. Each field's help text says what it is; docs/choices.md says why it is the default."""

    detector: Literal[
        "pirn", "nearest_neighbour", "gaussian", "patchcore", "btf", "m3dm", "cfm", "inp_former", "ast", "padim"
    ] = _option("pirn", "what rebuilds the tokens: PIRN, or a rival, which has settings of its own")
    encoder: str = _option("filter_bank", "filter_bank, or timm:MODEL[,key=value...]")
    encoder_normals: str | None = _option(
        None,
        "another encoder for the branch of the normals, fpfh[,radius=METRES] of its points too (default: the same)",
    )
    weights: str | None = _option(None, "weight file of a timm encoder; default: the published weights")
    image_size: int = _option(224, "side of the square images, pixels")
    modality: Literal["both", "rgb", "normals"] = _option("both", "which modalities to use (paper Table 3)")
    foreground: bool = _option(True, "count only tokens on the part, found by a plane fit to the cloud")
    plane_distance: float | None = _option(
        None, "metres off the table up to which a point is table (default: 0.005; 0.002 for dowel)"
    )
    fill_holes: bool = _option(False, "continue normals into holes of the depth, so that they are no evidence")
    augment: int = _option(0, "turned and shifted copies of each shot to learn from as well")
    num_prototypes: int = _option(30, "prototypes per modality, K")
    num_layers: int = _option(2, "decoder layers, L")
    epsilon: float = _option(0.02, "entropic regularisation of the transport")
    n_iters: int = _option(20, "Sinkhorn iterations")
    assignment: Literal["transport", "softmax", "linear", "sigmoid", "attention"] = _option(
        "transport", "how tokens are assigned to prototypes (paper Table 9); attention learns it (Table 2, BPA off)"
    )
    aggregation: Literal["transport", "topk", "mean", "none"] = _option(
        "transport", "what prototypes are refined with (paper Table 7); none leaves them as they are"
    )
    mnc: bool = _option(True, "exchange between the modalities (paper Table 2)")
    residual: Literal["purified", "none"] = _option(
        "none", "purified is Eq. 4 as printed, and lets the input leak through"
    )
    layer_norm: bool = _option(False, "normalise what a layer hands on to the next")
    prototype_init: Literal["kmeans", "random"] = _option("kmeans", "where prototypes start")
    num_neighbors: int = _option(3, "edges of a prototype into the other modality")
    gat_heads: int = _option(4, "heads of the graph attention")
    update_bias: float = _option(3.0, "start of the refiner's update gate; above 0 it starts near leaving prototypes")
    guard: bool = _option(False, "keep what no prototype explains out of the refinement; docs/guard.md")
    gamma: float = _option(0.5, "start of the cross-modal gate tanh(gamma)")
    loss: Literal["soft_mining", "cosine"] = _option("soft_mining", "reconstruction loss")
    deep_supervision: bool = _option(False, "hold every layer's Z_bpa to the loss as well")
    epochs: int | None = _option(10, "passes over the shots; more lowers the loss and the detection alike")
    batch_size: int | None = _option(None, "default: 1 up to 50 shots, 8 above")
    lr: float = _option(1e-4, "learning rate of Adam")
    score: Literal["cosine", "conditional", "whitened", "own"] = _option(
        "whitened", "how residuals are scored; own: as the detector's authors make heatmaps"
    )
    top_fraction: float = _option(0.0, "share of the pixels averaged into the score of a part; 0: the maximum")
    sigma: float = _option(4.0, "blur of the heatmaps, pixels")
    seed: int = _option(0, "seed of everything drawn at random")

    def __post_init__(self) -> None:
        """Checks choices and ranges.

        Raises:
            ConfigError: names the field, the value, and what is possible.
        """
        hints = get_type_hints(PIRNConfig)
        for spec in fields(self):
            value, hint = getattr(self, spec.name), hints[spec.name]
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ConfigError(f"{spec.name}: expected one of {', '.join(get_args(hint))}, got {value!r}")
        for name in ("image_size", "num_prototypes", "num_layers", "n_iters", "num_neighbors", "gat_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("epsilon", "lr", "plane_distance"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite value above 0, got {getattr(self, name)}")
        if self.needs_both and self.modality != "both":
            raise ConfigError(f"modality: expected both with detector {self.detector}, got {self.modality!r}")
        if self.guard and self.aggregation == "none":
            raise ConfigError("guard: expected off with aggregation none, which refines nothing; got True")
        if "rgb" in self.modalities and looks_at(self.encoder) == "points":
            raise ConfigError(
                f"encoder: {self.encoder} looks at points and sees no colours; give it as encoder_normals"
            )
        for name in ("seed", "augment"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.sigma < math.inf or not 0 <= self.top_fraction <= 1:
            raise ConfigError(
                f"expected sigma >= 0 and top_fraction in [0, 1], got {self.sigma} and {self.top_fraction}"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities in use, in order."""
        return ("rgb", "normals") if self.modality == "both" else (self.modality,)

    @property
    def encoders(self) -> dict[str, str]:
        """The name of the encoder of each modality in use."""
        return {m: self.encoder if m == "rgb" else self.encoder_normals or self.encoder for m in self.modalities}

    @property
    def needs_points(self) -> bool:
        """Whether an encoder looks at the points of the cloud."""
        return any(looks_at(name) == "points" for name in self.encoders.values())

    @property
    def needs_both(self) -> bool:
        """Whether the detector says nothing of one modality without the other."""
        return self.detector in NEEDS_BOTH

    def preparation(self, category: str) -> PrepareSettings:
        """How parts of a category are prepared."""
        distance = plane_distance(category) if self.plane_distance is None else self.plane_distance
        return PrepareSettings(self.image_size, self.foreground, distance, self.needs_points)

    def faithful(self) -> PIRNConfig:
        """Gives these settings with the paper's own, and its silent ones as docs/choices.md reads them.

        No mask, the leak, ten prototypes from a random start, epsilon 0.05, update bias 0, 60 epochs (8 above 50
        shots), the cosine score.
        """
        return replace(
            self,
            residual="purified",
            layer_norm=False,
            deep_supervision=False,
            prototype_init="random",
            score="cosine",
            foreground=False,
            num_prototypes=10,
            epsilon=0.05,
            update_bias=0.0,
            num_layers=2,
            loss="soft_mining",
            epochs=None,
            lr=1e-4,
            top_fraction=0.0,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PIRNConfig:
        """Gives a config from the dictionary a checkpoint holds.

        Raises:
            CheckpointError: for fields this version does not know, or values it does not allow.
        """
        unknown = sorted(values.keys() - {spec.name for spec in fields(cls)})
        if unknown:
            raise CheckpointError(f"config: this version of pirn does not know {', '.join(unknown)}")
        try:
            return cls(**values)
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"config: {error}") from None
