"""Hand-made texture, colour and shape features: no weights, no download, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from protoad.distributed import Group, gather
from protoad.encoders.base import Encoder, hash_tensors
from protoad.errors import EncoderError, ShapeError

__all__ = ["FilterBankEncoder"]

# Rows: lightness, red against green, yellow against blue. Invertible, so the colour-coded normal is kept too.
_OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
# A pooled response that never moves by half a grey level carries rounding noise, not a pattern.
_MIN_DEVIATION = 0.5 / 255
# A quarter of a grey level: added under square roots, whose slope has no bound at zero.
_FLOOR = 1e-3
# Axes of the standardised responses with a smaller variance are not blown up to unit size.
_MIN_AXIS_VARIANCE = 0.1
_POOL = 0.7  # deviation of the pooling window, strides
_REVISION = (
    1  # raised whenever the same images give other responses, so that stored tokens are not taken for current ones
)
_CHUNK = 16


class FilterBankEncoder(Encoder):
    """Oriented Gaussian-derivative energy and colour statistics on a token grid, lifted for cosine comparison.

    Each image is turned into one lightness and two opponent channels. Per channel, token and scale the responses are
    the pooled magnitudes of the first and second Gaussian derivative in `orientations` directions; per channel and
    token also the mean at two scales and the local standard deviation. Magnitudes enter as square roots, which tames
    their long tails. By the statistics of the shots the responses are standardised and whitened to `components`
    dimensions, since many of them say the same, and then lifted by orthogonal random Fourier features (Rahimi and
    Recht, 2007; Yu et al., 2016): the inner product of two lifted tokens approximates
    `exp(-|x - y|^2 / (2 length_scale^2))`. Prototypes and banks compare by cosine, and a cosine of standardised
    responses forgets how strong a response is.

    Args:
        sigmas: scales of the derivatives, pixels.
        orientations: directions in half a turn.
        stride: pixels from one token to the next; image sides are multiples of it.
        components: dimensions kept by the whitening; None standardises only.
        lift: width of the lifted token, even; None leaves the whitened responses.
        length_scale: of the Gaussian kernel, in standard deviations of the shots.
        seed: of the random frequencies.

    Raises:
        EncoderError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        sigmas: Sequence[float] = (1.0, 2.0, 4.0),
        orientations: int = 4,
        stride: int = 8,
        components: int | None = 48,
        lift: int | None = 256,
        length_scale: float = 8.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sigmas, self.orientations, self.stride, self.seed = tuple(sigmas), orientations, stride, seed
        self.num_responses = 3 * (3 + 2 * orientations * len(self.sigmas))
        self.components, self.lift, self.length_scale = components, lift, length_scale
        self._check_arguments()
        self.name = "filter_bank"
        width = components or self.num_responses
        self.dim = lift or width
        self.register_buffer("fitted", torch.tensor(False))
        self._ready = False  # the same as a plain bool: reading a buffer in forward would break tracing and export
        self.register_load_state_dict_post_hook(_recall_ready)
        self.register_buffer("shift", torch.zeros(self.num_responses))
        self.register_buffer("whiten", torch.eye(self.num_responses)[:, :width])
        self.register_buffer("frequencies", _frequencies(width, (lift or 0) // 2, length_scale, seed))

    def _check_arguments(self) -> None:
        if not self.sigmas or min(self.sigmas) <= 0 or self.orientations < 1 or self.stride < 1:
            raise EncoderError("filter_bank: sigmas, orientations and stride must be positive")
        if self.components is not None and not 1 <= self.components <= self.num_responses:
            raise EncoderError(f"filter_bank: components must be 1 to {self.num_responses}, got {self.components}")
        if self.lift is not None and (self.lift < 2 or self.lift % 2):
            raise EncoderError(f"filter_bank: lift must be an even number of channels or None, got {self.lift}")
        if not self.length_scale > 0:
            raise EncoderError(f"filter_bank: length_scale must be positive, got {self.length_scale}")

    def fit(self, images: Tensor, keep: Tensor | None = None, process_group: Group = None) -> FilterBankEncoder:
        """Takes mean, deviation and principal axes of the responses from the shots.

        Args:
            images: `(b 3 y x)` in [0, 1].
            keep: `(b n)` bool, tokens that count (the foreground); all of them by default.
            process_group: processes that hold the shots together, each some; all take the same statistics.

        Raises:
            EncoderError: if fewer than two tokens are kept.
            ShapeError: if `keep` does not belong to the images.
        """
        ty, tx = self.check_images(images)
        tokens = torch.cat([self.responses(chunk) for chunk in images.split(_CHUNK)])
        if keep is not None:
            if keep.shape != (len(images), ty * tx):
                raise ShapeError(f"keep: expected (b n) = ({len(images)}, {ty * tx}), got {tuple(keep.shape)}")
            tokens = tokens[keep.to(device=tokens.device, dtype=torch.bool)]
        tokens = gather(tokens.reshape(-1, self.num_responses), process_group).double()
        if len(tokens) < 2:
            raise EncoderError(
                f"filter_bank: statistics need two tokens or more, {len(tokens)} are kept; widen the mask"
            )
        mean, deviation = tokens.mean(0), tokens.std(0).clamp_min(_MIN_DEVIATION)
        whiten = torch.diag(1 / deviation)
        if self.components is not None:
            whiten = whiten @ _principal_axes((tokens - mean) / deviation, self.components)
        self.get_buffer("shift").copy_(mean)
        self.get_buffer("whiten").copy_(whiten)
        self.get_buffer("fitted").fill_(True)
        self._ready = True
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Tokens `(b n d)` of `images` `(b 3 y x)` in [0, 1].

        Raises:
            EncoderError: before `fit`, or if a side is not a multiple of the stride.
        """
        if not self._ready:
            raise EncoderError("filter_bank: has no statistics yet; call fit(images) with the shots first")
        with torch.autocast(images.device.type, enabled=False):
            tokens = (self.responses(images) - self.get_buffer("shift")) @ self.get_buffer("whiten")
            if self.lift is None:
                return tokens
            phase = tokens @ self.get_buffer("frequencies")
            return torch.cat((phase.cos(), phase.sin()), dim=-1) / math.sqrt(self.lift // 2)

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the filters, the statistics of the shots and the random frequencies."""
        title = f"{self.name} {_REVISION} {self.sigmas} {self.orientations} {self.stride} {self.lift}"
        return hash_tensors(title, self.state_dict().items())

    def responses(self, images: Tensor) -> Tensor:
        """Pooled filter responses `(b n num_responses)`, before any statistics, in units of the image."""
        self.check_images(images)
        channels = torch.einsum("oc,bcyx->boyx", images.new_tensor(_OPPONENT).float(), images.float())
        maps = [*self._colour(channels)]
        for sigma in self.sigmas:
            maps += self._energies(channels, sigma)
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)

    def _colour(self, channels: Tensor) -> list[Tensor]:
        mean = self._pool(channels, 1)
        # Moments about the image's mean: about zero, float32 loses the variance of flat regions.
        centred = channels - channels.mean((2, 3), keepdim=True)
        variance = self._pool(centred.square(), 1) - self._pool(centred, 1).square()
        wide = _filter(channels, 2.0 * self.stride, 0, 0, self.stride)
        return [mean, wide, variance.clamp_min(0).add(_FLOOR**2).pow(0.25)]

    def _energies(self, channels: Tensor, sigma: float) -> list[Tensor]:
        # Wide filters are smooth: evaluating them on every second or fourth pixel loses nothing and costs a fraction.
        step = math.gcd(self.stride, max(1, 2 ** int(math.log2(max(sigma, 1.0)))))
        gx, gy = (sigma * _filter(channels, sigma, *order, step) for order in ((0, 1), (1, 0)))
        gxx, gxy, gyy = (sigma**2 * _filter(channels, sigma, *order, step) for order in ((0, 2), (1, 1), (2, 0)))
        maps = []
        for index in range(self.orientations):
            cos, sin = math.cos(math.pi * index / self.orientations), math.sin(math.pi * index / self.orientations)
            maps.append(self._pool((cos * gx + sin * gy).abs(), step))
            maps.append(self._pool((cos * cos * gxx + 2 * cos * sin * gxy + sin * sin * gyy).abs(), step))
        return [magnitude.add(_FLOOR).sqrt() for magnitude in maps]

    def _pool(self, maps: Tensor, step: int) -> Tensor:
        """Gaussian window around each token's centre; neighbouring windows overlap."""
        return _filter(maps, _POOL * self.stride / step, 0, 0, self.stride // step)

    def extra_repr(self) -> str:
        lifted = f"lift={self.lift}, length_scale={self.length_scale}"
        return f"sigmas={self.sigmas}, stride={self.stride}, components={self.components}, {lifted}"


def _recall_ready(module: nn.Module, _keys: object) -> None:
    module._ready = bool(module.get_buffer("fitted"))  # type: ignore[assignment]


def _frequencies(width: int, count: int, length_scale: float, seed: int) -> Tensor:
    """Gaussian frequencies `(width count)`, orthogonal within blocks: the same kernel with less variance."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(0, count, width):
        directions = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
        lengths = torch.randn(width, width, generator=generator, dtype=torch.float64).norm(dim=0)
        blocks.append(directions * lengths)
    if not blocks:
        return torch.zeros(width, 0)
    return (torch.cat(blocks, dim=1)[:, :count] / length_scale).float()


def _principal_axes(tokens: Tensor, components: int) -> Tensor:
    """Whitening `(d components)` onto the leading principal axes of centred tokens `(n d)`."""
    values, axes = torch.linalg.eigh(tokens.T @ tokens / (len(tokens) - 1))
    values, axes = values.flip(0)[:components], axes.flip(1)[:, :components]
    return axes / values.clamp_min(_MIN_AXIS_VARIANCE).sqrt()


def _filter(maps: Tensor, sigma: float, order_y: int, order_x: int, step: int) -> Tensor:
    """Separable Gaussian derivative of `(b c y x)` at the centre of every block of `step` pixels, borders reflected."""
    rows = torch.from_numpy(_matrix(maps.shape[-2], sigma, order_y, step)).to(maps)
    columns = torch.from_numpy(_matrix(maps.shape[-1], sigma, order_x, step)).to(maps)
    return rows @ (maps @ columns.T)


@lru_cache(maxsize=64)
def _matrix(size: int, sigma: float, order: int, step: int) -> np.ndarray:
    """One-dimensional filter as a matrix `(size / step, size)`: a dense product is faster than a long convolution.

    An array: a tensor that outlives the call would bring inference mode, or what an export traces with, into the next.
    """
    radius = math.ceil(4 * sigma + step / 2)
    centres = step * np.arange(size // step) + (step - 1) / 2
    pixels = np.floor(centres)[:, None].astype(int) + np.arange(-radius, radius + 1)
    offsets = pixels - centres[:, None]
    gauss = np.exp(-0.5 * (offsets / sigma) ** 2)
    gauss /= gauss.sum(axis=1, keepdims=True)
    factor = (np.ones_like(offsets), -offsets / sigma**2, (offsets**2 - sigma**2) / sigma**4)[order]
    taps = gauss * factor
    if order:
        taps -= gauss * taps.sum(axis=1, keepdims=True)  # flat input answers exactly zero
    folded = np.abs((pixels + size - 1) % max(2 * size - 2, 1) - (size - 1))
    matrix = np.zeros((size // step, size))
    np.add.at(matrix, (np.arange(size // step)[:, None], folded), taps)
    return matrix.astype(np.float32)
