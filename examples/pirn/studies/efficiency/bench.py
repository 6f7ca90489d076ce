"""A fitted detector, what it is made of, and what one part costs it: operations, time and memory."""

from __future__ import annotations

import platform
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pirn.config import PIRNConfig
from pirn.detector import build_extractor, build_reconstructor, with_head
from pirn.studies.efficiency.flops import count_flops
from pirn.studies.rows import Row
from protoad.data import Prepared, prepare, render_part
from protoad.detection import Detector, FeatureExtractor, Features
from protoad.encoders import Encoder, FeatureCache, TimmEncoder
from protoad.encoders.timm_weights import transformer_stride
from protoad.ops import sinkhorn

__all__ = ["Bench", "Effort", "Seen", "describe_device", "peak_memory"]

_FEATURES = ("encoder", "encoder_normals", "weights", "foreground", "image_size")


@dataclass(frozen=True)
class Effort:
    """How thoroughly to measure.

    Args:
        shots: good parts to learn from; a memory bank grows with them.
        repeats: runs that are timed, after as many to warm up as a fifth of them.
    """

    shots: int = 10
    repeats: int = 25


class _Unremembered(FeatureCache):
    """Encodes anew each time, and hashes nothing: what is timed is the encoder."""

    def encode(self, encoder: Encoder, images: Tensor, keys: Sequence[str] | None = None) -> Tensor:
        with torch.inference_mode():
            return encoder(images)


class Seen:
    """The shots, a part to look at, and the shots' features under the encoder that was asked for last.

    Args:
        effort: how many shots.
        device: to work on.
        seed: of parts and weights.
    """

    def __init__(self, effort: Effort, device: torch.device, seed: int) -> None:
        self.effort, self.device, self.seed = effort, device, seed
        self._cache = FeatureCache()
        self._latest: tuple[list[object], FeatureExtractor, Features] | None = None

    def learn(self, config: PIRNConfig) -> tuple[FeatureExtractor, Features]:
        """Gives fitted encoders and the features of the shots."""
        key = [getattr(config, name) for name in _FEATURES]
        if self._latest is None or self._latest[0] != key:
            shots = [self._part(config, index) for index in range(self.effort.shots)]
            self._cache = FeatureCache() if self._latest is None or self._latest[0][0] != key[0] else self._cache
            extractor = build_extractor(config, cache=self._cache).to(self.device).fit(shots)
            self._latest = (key, extractor, extractor.learnt_from(shots))
            extractor.cache = _Unremembered()
        return self._latest[1:]

    def fresh_part(self, config: PIRNConfig) -> Prepared:
        """Gives a good part that is none of the shots."""
        return self._part(config, self.effort.shots)

    def _part(self, config: PIRNConfig, index: int) -> Prepared:
        sample = render_part("cookie", seed=1000 * self.seed + index, size=max(config.image_size, 64))
        return prepare(sample, config.image_size, foreground=config.foreground)


class Bench(NamedTuple):
    """A fitted detector and a part to look at.

    Attributes:
        extractor: its encoders.
        detector: reconstructor, score and heatmaps.
        part: to look at.
        size: tokens, and parameters of encoders, which are frozen, and of what rebuilds tokens; an encoder that serves
            both modalities counts once.
    """

    extractor: FeatureExtractor
    detector: Detector
    part: Prepared
    size: Row

    @classmethod
    def of(cls, config: PIRNConfig, seen: Seen) -> Bench:
        """Fits a detector to the shots; one epoch, for nothing measured here depends on what was learnt."""
        config = replace(config, epochs=1, seed=seen.seed)
        extractor, features = seen.learn(config)
        reconstructor = build_reconstructor(config, extractor).to(extractor.device)
        detector = with_head(reconstructor, extractor, config).to(extractor.device).fit(features).eval()
        parameters = list(reconstructor.parameters())
        size = {
            "tokens": extractor.grid[0] * extractor.grid[1],
            "dim": next(iter(extractor.encoders.values())).dim,
            "encoder parameters": _count(extractor.parameters()),
            "decoder parameters": _count(parameters),
            "trained parameters": _count(p for p in parameters if p.requires_grad),
        }
        detector.requires_grad_(False)  # nothing is learnt from here on; torch's counter stumbles over what could be
        return cls(extractor, detector, seen.fresh_part(config), size)

    def run(self) -> Tensor:
        """Looks at the part, from prepared images to its score."""
        return self.detector(self.extractor([self.part])).score

    def operations(self) -> Row:
        """Floating point operations of each stage."""
        features = self.extractor([self.part])
        encoder = count_flops(lambda: self.extractor([self.part]))
        decoder = count_flops(lambda: self.detector.reconstructor(features.tokens, features.mask))
        both = count_flops(lambda: self.detector(features))
        return {"encoder flops": encoder, "decoder flops": decoder, "score flops": both - decoder}

    def time(self, repeats: int) -> Row:
        """Milliseconds of each stage and of the whole: medians, and quartiles of the whole.

        One thread is timed in processor time, which is that of an idle machine on a busy one, too; more threads, and a
        GPU, in wall time. On a GPU the stages wait for each other, as they do not have to: their sum is an upper bound.
        """
        for _ in range(max(1, repeats // 5)):
            self.run()
        runs = np.array([self._timed() for _ in range(repeats)])
        stages, whole = np.median(runs[:, :3], axis=0).tolist(), runs[:, :3].sum(1)
        low, middle, high = np.quantile(whole, (0.25, 0.5, 0.75)).tolist()
        return {
            "clock": "processor" if self._one_thread() else "wall",
            **{"ms": middle, "ms low": low, "ms high": high},
            **dict(zip(("encoder ms", "decoder ms", "score ms"), stages, strict=True)),
            "wall ms": float(np.median(runs[:, 3])),
        }

    def _timed(self) -> tuple[float, float, float, float]:
        """Milliseconds in encoder, reconstructor and all after them; and of all by a clock on the wall."""
        inside: list[float] = []
        reconstructor = self.detector.reconstructor
        hooks = (
            reconstructor.register_forward_pre_hook(lambda *_: inside.append(-self._now())),
            reconstructor.register_forward_hook(lambda *_: inside.append(self._now())),
        )
        wall, start = time.perf_counter(), self._now()
        features = self.extractor([self.part])
        encoded = self._now()
        self.detector(features)
        end, wall = self._now(), time.perf_counter() - wall
        for hook in hooks:
            hook.remove()
        decoder = sum(inside)
        return 1e3 * (encoded - start), 1e3 * decoder, 1e3 * (end - encoded - decoder), 1e3 * wall

    def _now(self) -> float:
        if self.extractor.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self._one_thread() else time.perf_counter()

    def _one_thread(self) -> bool:
        return self.extractor.device.type == "cpu" and torch.get_num_threads() == 1

    def memory(self) -> float:
        """Megabytes (10^6 bytes) that weights and the look at one part take at most; NaN where nobody can tell.

        Of a process that does nothing else: on a GPU what torch has allocated there, on a CPU what is in memory above
        what was there before the detector was loaded. Code that is imported does not count.
        """
        timm = any(isinstance(encoder, TimmEncoder) for encoder in self.extractor.encoders.values())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.pt"
            torch.save(tuple(self), path)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                return pool.submit(peak_memory, path, timm=timm).result()


def peak_memory(path: Path, *, timm: bool) -> float:
    """Gives the megabytes by which a look at a part raises the memory of this process; for `Bench.memory`.

    Args:
        path: of a bench that was saved.
        timm: whether its encoders need that.
    """
    if timm:
        transformer_stride("vit_tiny_patch16_224")  # imports it as protoad does, where torchvision does not fit
    torch.load(path, weights_only=False, map_location="meta")  # imports what it needs, and loads no weights
    sinkhorn(torch.eye(2), torch.eye(2))  # torch imports its compiler for the first operator that is not its own
    before = _resident("VmRSS")
    bench = Bench(*torch.load(path, weights_only=False))
    bench.run()
    if bench.extractor.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    # not getrusage's ru_maxrss: Linux starts that of a new process with the peak of the one that started it
    return (_resident("VmHWM") - before) / 1e6


def _resident(name: str) -> float:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM); NaN away from Linux."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return 1024.0 * int(found[1]) if found else float("nan")


def describe_device(device: torch.device) -> str:
    """Such as "Intel(R) Xeon(R) Processor, 1 thread"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    threads = torch.get_num_threads()
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
