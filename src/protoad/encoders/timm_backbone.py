"""Frozen ViTs and CNNs of timm as token encoders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from protoad.encoders.base import Encoder, hash_tensors, parse_options
from protoad.encoders.timm_weights import RANDOM, create_timm_model, transformer_stride
from protoad.errors import EncoderError

__all__ = ["TimmEncoder"]

_PREFIX = "timm:"


class TimmEncoder(Encoder):
    """Tokens of a frozen timm backbone.

    A vision transformer gives the element-wise mean of the raw outputs of several blocks, without final norm, class and
    register tokens; blocks after the last of them are dropped (the paper's layers 2 to 10 of DINOv2 ViT-B/14, here the
    0-based blocks 2..9). A convolutional network gives several of its levels, resized to the grid of the middle one and
    concatenated.

    Args:
        model: timm's name, such as "vit_base_patch14_dinov2" or "mobilenetv2_100".
        weights: a .safetensors or .pth file; None fetches the published weights; "random" starts at random, for tests
            and timing only.
        image_size: side of the square images, pixels; position embeddings are resampled to it once.
        mean: of the input, one value or three; the model's own by default.
        std: of the input, one value or three; the model's own by default.
        blocks: 0-based transformer blocks to average; by default 2..9 of 12, scaled with the depth.
        levels: levels of a convolutional network to concatenate.
        seed: of random weights.
        create: every other option of `timm.create_model`, such as `pad_type="same"`.

    Raises:
        EncoderError: if the model is unknown or unsuited, an option or the size does not fit, or the weights cannot be
            had.
        MissingExtraError: if timm is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str | Path | None = None,
        image_size: int = 224,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        blocks: Sequence[int] | None = None,
        levels: Sequence[int] | None = None,
        seed: int = 0,
        **create: Any,
    ) -> None:
        super().__init__()
        self.name = _PREFIX + model + (f",weights={RANDOM}" if weights == RANDOM else "")
        self.image_size = image_size
        self.blocks: list[int] | None = None
        self.levels: list[int] | None = None
        stride = transformer_stride(model, **create)
        if stride is not None:
            if levels is not None:
                raise EncoderError(f"{self.name}: a transformer has blocks, not levels; write blocks=2-9")
            self.stride = stride
            super().grid(image_size)  # before the weights: a wrong size costs no download
            self._build_transformer(model, weights, blocks, seed, create)
        else:
            if blocks is not None:
                raise EncoderError(f"{self.name}: a convolutional network has levels, not blocks; write levels=1-3")
            self._build_cnn(model, weights, (1, 2, 3) if levels is None else levels, seed, create)
        config = getattr(self.model, "pretrained_cfg", {})
        self.register_buffer("mean", _three(mean, config.get("mean", (0.485, 0.456, 0.406)), self.name))
        self.register_buffer("std", _three(std, config.get("std", (0.229, 0.224, 0.225)), self.name))
        self._digest: str | None = None
        self.requires_grad_(False)
        self.eval()
        self.grid(image_size)

    @classmethod
    def from_name(
        cls, name: str, *, weights: str | Path | None = None, image_size: int = 224, seed: int = 0
    ) -> TimmEncoder:
        """An encoder from `timm:MODEL[,key=value...]`.

        `mean`, `std` (one number), `blocks=2-9`, `levels=1-3` and `weights=random` are this class's own; all other keys
        go to `timm.create_model`.

        Raises:
            EncoderError: as the constructor, and if the name cannot be read.
        """
        model, _, text = name.removeprefix(_PREFIX).partition(",")
        if not model:
            raise EncoderError(f"encoder {name!r}: no model is named; write for example timm:vit_base_patch14_dinov2")
        options = parse_options(text, name)
        if options.pop("weights", RANDOM) != RANDOM:
            raise EncoderError(
                f"encoder {name!r}: only weights=random stands in a name; give a file as weights beside it"
            )
        if "weights=random" in text.split(","):
            weights = RANDOM
        for key in ("blocks", "levels"):
            if key in options:
                options[key] = _span(str(options[key]), key, name)
        encoder = cls(model, weights=weights, image_size=image_size, seed=seed, **options)
        encoder.name = name if weights != RANDOM or "weights=random" in text.split(",") else f"{name},weights={RANDOM}"
        return encoder

    def _build_transformer(
        self, model: str, weights: str | Path | None, blocks: Sequence[int] | None, seed: int, create: dict[str, Any]
    ) -> None:
        built: Any = create_timm_model(model, weights, seed=seed, img_size=self.image_size, num_classes=0, **create)
        depth = len(built.blocks)
        self.blocks = sorted({round(depth * index / 12) for index in range(2, 10)} if blocks is None else set(blocks))
        if not self.blocks or self.blocks[0] < 0 or self.blocks[-1] >= depth:
            raise EncoderError(f"{self.name}: blocks must be 0 to {depth - 1}, got {self.blocks}")
        built.prune_intermediate_layers(self.blocks, prune_norm=True, prune_head=True)
        self.model, self.dim = built, built.embed_dim

    def _build_cnn(
        self, model: str, weights: str | Path | None, levels: Sequence[int], seed: int, create: dict[str, Any]
    ) -> None:
        wanted = {"features_only": True, "out_indices": tuple(levels)}
        built: Any = create_timm_model(model, weights, seed=seed, **wanted, **create)
        self.model, self.levels = built, list(levels)
        self.dim = sum(built.feature_info.channels())
        self.stride = built.feature_info.reduction()[len(levels) // 2]

    def grid(self, size: int) -> tuple[int, int]:
        """Token grid `(ty, tx)` of a `size` x `size` image.

        Raises:
            EncoderError: if the size does not divide into tokens, or a transformer was built for another one.
        """
        if self.blocks is not None and size != self.image_size:
            raise EncoderError(
                f"{self.name}: built for images of {self.image_size} px, got {size}; build it with image_size={size}"
            )
        return super().grid(size)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens `(b n d)` of `images` `(b 3 y x)` in [0, 1].

        Raises:
            ShapeError: if `images` has another shape or dtype.
            EncoderError: if their size does not fit.
        """
        ty, tx = self.check_images(images)
        mean, std = (self.get_buffer(name)[:, None, None] for name in ("mean", "std"))
        normalised = (images.to(mean.dtype) - mean) / std
        if self.blocks is not None:
            tokens = self._transformer_tokens(normalised)
        else:
            tokens = self._cnn_tokens(normalised, (ty, tx))
        if tokens.shape != (images.shape[0], ty * tx, self.dim):
            raise EncoderError(
                f"{self.name}: expected tokens (b n d) = ({len(images)}, {ty * tx}, {self.dim}), the network gave "
                f"{tuple(tokens.shape)}; choose a plain vision transformer or a convolutional network"
            )
        return tokens

    def _transformer_tokens(self, images: Tensor) -> Tensor:
        outputs = self.model.forward_intermediates(
            images, indices=self.blocks, norm=False, output_fmt="NLC", intermediates_only=True, stop_early=True
        )
        return torch.stack(outputs).mean(0)

    def _cnn_tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        maps = [F.interpolate(level, grid, mode="bilinear", align_corners=False) for level in self.model(images)]
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of name, weights, normalisation, blocks or levels and size."""
        if self._digest is None:
            title = f"{self.name} blocks={self.blocks} levels={self.levels} size={self.image_size}"
            self._digest = hash_tensors(title, self.state_dict().items())
        return self._digest

    def _apply(self, fn: Any, recurse: bool = True) -> TimmEncoder:
        self._digest = None  # half() changes the weights
        return super()._apply(fn, recurse)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; the fingerprint follows."""
        self._digest = None
        return super().load_state_dict(*args, **kwargs)


def _three(value: float | Sequence[float] | None, default: Sequence[float], name: str) -> Tensor:
    """One value per colour channel, from one or three."""
    values = default if value is None else (value,) * 3 if isinstance(value, (int, float)) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
        raise EncoderError(f"{name}: mean and std are one number or three, got {value!r}")
    return torch.tensor(values, dtype=torch.float32)


def _span(text: str, key: str, name: str) -> list[int]:
    """`"2-9"` as [2, ..., 9], `"3"` as [3]."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise EncoderError(f"encoder {name!r}: {key} is written as a range such as {key}=2-9, got {text!r}")
    return list(range(int(match[1]), int(match[2] or match[1]) + 1))
