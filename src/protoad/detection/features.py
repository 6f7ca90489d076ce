"""What frozen encoders see of parts, and which of it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, max_pool2d

from protoad.background import TokenBackground
from protoad.data.holes import fill_normals
from protoad.data.prepare import Prepared
from protoad.distributed import Group, gather
from protoad.encoders import Encoder, FeatureCache
from protoad.errors import DataError

__all__ = ["FeatureExtractor", "Features"]


class Features(NamedTuple):
    """What encoders saw of some parts.

    Attributes:
        tokens: modality ("rgb", "normals") -> (b n d).
        mask: (b n) bool, True for tokens that count.
        guessed: (b n) bool, True for tokens that their normals say nothing of, on parts with more holes in their depth
            than the shots had; None where there are none.
        lost: (b) share of the part without depth, 0 for parts with no more holes than the shots; None: nobody looked.
        shot: (b) number of the shot that this is, or is a copy of; None: each is a shot of its own.
    """

    tokens: dict[str, Tensor]
    mask: Tensor
    guessed: Tensor | None = None
    lost: Tensor | None = None
    shot: Tensor | None = None

    def pick(self, indices: Tensor) -> Features:
        """Gives the features of some of the parts."""
        rest = (None if value is None else value[indices] for value in self[2:])
        return Features({m: t[indices] for m, t in self.tokens.items()}, self.mask[indices], *rest)


class FeatureExtractor(nn.Module):
    """Frozen encoders of one or two modalities, and the mask of the tokens that count.

    A part with more holes in its depth than any shot had is not judged by its normals there: tokens without depth count
    if they look like the part, and those to be judged by their colours alone are marked as guessed.

    Args:
        encoders: modality ("rgb" and / or "normals", fields of `Prepared`) -> encoder; one of the normals may look at
            points instead, of those parts of the cloud that count.
        image_size: side of the square images, pixels.
        foreground: whether only tokens with a foreground pixel count; otherwise all do.
        fill_holes: whether normals are continued into holes before they are encoded. Then only the tokens within holes
            are guessed; otherwise a hole is an edge to the encoder, and all tokens of such a part are.
        cache: where features are kept; each image is encoded once.

    Raises:
        DataError: if the encoders' grids differ, or that of the colours looks at points.
    """

    usual_loss: Tensor

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        *,
        image_size: int,
        foreground: bool = True,
        fill_holes: bool = False,
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        self.encoders: Mapping[str, Encoder] = nn.ModuleDict(encoders)  # type: ignore[assignment]
        self.image_size, self.foreground, self.fill_holes = image_size, foreground, fill_holes
        self.cache = FeatureCache() if cache is None else cache
        grids = {m: encoder.grid(image_size) for m, encoder in encoders.items()}
        if len(set(grids.values())) != 1:
            raise DataError(f"encoders: expected one token grid for all modalities, got {grids}")
        if "rgb" in encoders and encoders["rgb"].looks_at == "points":
            raise DataError(f"encoders: {encoders['rgb'].name} looks at points and sees no colours; give rgb another")
        self.grid = next(iter(grids.values()))
        self.looks = TokenBackground(encoders["rgb"].dim) if foreground and "rgb" in encoders else None
        self.register_buffer("usual_loss", torch.ones(()))  # share of a shot without depth, the largest

    @property
    def device(self) -> torch.device:
        """Where the encoders are, and the features they give."""
        return next(chain(self.parameters(), self.buffers())).device

    def fit(
        self,
        parts: Sequence[Prepared],
        process_group: Group = None,
        *,
        copies: Sequence[Prepared] = (),
        encoders: bool = True,
    ) -> FeatureExtractor:
        """Learns from the shots what they look like; pretrained encoders take no statistics.

        Args:
            parts: the shots; with a process group, this process's share of them.
            process_group: processes that share the shots.
            copies: of the shots, moved: for the encoders alone, for what is turned in from outside has no depth.
            encoders: False leaves the statistics of the encoders as they are: what was learnt on their tokens
                stays true.
        """
        everything, mask, valid = [*parts, *copies], self.token_mask(parts), self._valid(parts)
        tokens = {}
        for modality, encoder in self.encoders.items() if encoders else ():
            encoder.fit(self._images(everything, modality), self.token_mask(everything), process_group)
        if self.looks is not None:
            tokens["rgb"] = self.cache.encode(self.encoders["rgb"], self._images(parts, "rgb"))
            self.looks.fit(gather(tokens["rgb"], process_group), gather(mask, process_group))
        loss = self._without_depth(valid, self._seen(tokens, valid, mask))  # counted as in the parts that will come
        self.usual_loss.fill_(gather(loss, process_group).max())
        return self

    def token_mask(self, parts: Sequence[Prepared]) -> Tensor:
        """Gives (b n) bool: a token counts if any of its pixels is foreground. A part of which none is counts whole."""
        foreground = torch.stack([part.foreground for part in parts]).to(self.device)
        return self.pool(foreground if self.foreground else torch.ones_like(foreground))

    def pool(self, foreground: Tensor) -> Tensor:
        """Gives (b n) bool of foreground masks (b y x) bool, as `token_mask` does."""
        tokens = adaptive_max_pool2d(foreground.float().unsqueeze(1), self.grid).flatten(1) > 0
        return tokens | ~tokens.any(1, keepdim=True)

    def forward(self, parts: Sequence[Prepared], modalities: Sequence[str] | None = None) -> Features:
        """Gives the `Features` of prepared parts, on the device of the encoders.

        Args:
            parts: what was seen.
            modalities: those to look at; default: all there are encoders for.

        Raises:
            DataError: for a modality without an encoder, or none at all, or parts without points that an encoder needs.
        """
        chosen = list(self.encoders) if modalities is None else list(modalities)
        if not chosen or any(m not in self.encoders for m in chosen):
            raise DataError(
                f"modalities: expected some of {', '.join(self.encoders)}, got {', '.join(chosen) or 'none'}"
            )
        tokens = {m: self.cache.encode(self.encoders[m], self._images(parts, m)) for m in chosen}
        features = self.assemble(tokens, self._valid(parts), self.token_mask(parts))
        guesses = features.guessed is not None and bool(features.guessed.any())
        return features if guesses else features._replace(guessed=None)

    def learnt_from(self, parts: Sequence[Prepared], copies: Sequence[Prepared] = ()) -> Features:
        """Gives the features of shots, then of their copies: as they are, whatever holes a copy has from its turn.

        Args:
            parts: the shots.
            copies: as many of each, those of the first, then those of the second, as `random_copies` gives them.

        Raises:
            DataError: for copies that are not as many of each.
        """
        each, rest = divmod(len(copies), len(parts))
        if rest:
            raise DataError(f"copies: expected as many of each of {len(parts)} parts, got {len(copies)}")
        everything, number = [*parts, *copies], torch.arange(len(parts), device=self.device)
        shot = torch.cat([number, number.repeat_interleave(each)]) if copies else None
        return Features(self(everything).tokens, self.token_mask(everything), shot=shot)

    def assemble(self, tokens: Mapping[str, Tensor], valid: Tensor, mask: Tensor) -> Features:
        """Judges by looks what has no depth, on parts with more holes than the shots had.

        Args:
            tokens: modality -> (b n d).
            valid: (b y x) bool, where there is depth.
            mask: (b n) bool, tokens that count by their depth, as `token_mask` gives them.
        """
        blind, seen = self._blind(valid), self._seen(tokens, valid, mask)
        loss = self._without_depth(valid, seen)
        short = loss > self.usual_loss + _MARGIN
        mask = (short[:, None] & seen) | (~short[:, None] & mask)  # not by where: ONNX Runtime has none of booleans
        guessed = short[:, None] & (blind if self.fill_holes else torch.ones_like(blind))
        return Features(dict(tokens), mask, guessed, torch.where(short, loss, 0.0))

    def _seen(self, tokens: Mapping[str, Tensor], valid: Tensor, mask: Tensor) -> Tensor:
        """(b n) bool, what counts: by its depth, and where there is none by its looks."""
        if self.looks is None or "rgb" not in tokens:
            return mask
        blind = self._blind(valid)
        within = mask | valid.flatten(1).any(1, keepdim=True)  # without any depth, the mask is that of the frame
        looks = (blind & within & self.looks(tokens["rgb"])) | (~blind & mask)
        return looks | ~looks.any(1, keepdim=True)

    def _blind(self, valid: Tensor) -> Tensor:
        """(b n) bool: tokens without enough depth to go by."""
        return self._share(valid, near=True) < _MOSTLY

    def _without_depth(self, valid: Tensor, mask: Tensor) -> Tensor:
        """(b) share of what counts, mask (b n), that has no depth."""
        return ((1 - self._share(valid)) * mask).sum(1) / mask.sum(1)

    def _share(self, valid: Tensor, *, near: bool = False) -> Tensor:
        """(b n) share of a token's pixels with depth, or with depth at most a pixel away: single specks fill well."""
        seen = valid.float().unsqueeze(1)
        if near:
            seen = max_pool2d(seen, 3, stride=1, padding=1)
        return adaptive_avg_pool2d(seen, self.grid).flatten(1)

    def _valid(self, parts: Sequence[Prepared]) -> Tensor:
        return torch.stack([part.valid for part in parts]).to(self.device)

    def _images(self, parts: Sequence[Prepared], modality: str) -> Tensor:
        if self.encoders[modality].looks_at == "points":
            return torch.stack([self._points(part, self.encoders[modality].name) for part in parts]).to(self.device)
        images = torch.stack([getattr(part, modality) for part in parts]).to(self.device)
        if modality == "rgb" or not self.fill_holes:
            return images
        return fill_normals(images, self._valid(parts))

    def _points(self, part: Prepared, name: str) -> Tensor:
        """(6 y x) points of what counts and their normals, both in camera axes."""
        if part.xyz is None:
            raise DataError(
                f"{name}: looks at points, which this part was prepared without; prepare it with points=True"
            )
        seen = part.valid & part.foreground if self.foreground else part.valid
        normals = torch.where(seen, 2 * part.normals - 1, 0) * _CAMERA_AXES[:, None, None]
        return torch.cat([torch.where(seen, part.xyz, torch.nan), normals])


_CAMERA_AXES = torch.tensor([1.0, -1.0, -1.0])  # times what has y up and z towards the viewer
_MOSTLY = 0.5  # a token of which less was seen is guessed
_MARGIN = 0.02  # beyond the holes of the worst shot: a new part may have a little more and yet be as usual
