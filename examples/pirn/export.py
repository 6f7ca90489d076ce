"""A trained detector as one file that runs without pirn: ONNX, or torch.export's own format."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize, pad

import protoad
from pirn.conditions import conditions
from pirn.detector import PIRNDetector
from protoad.checkpoint import write_atomically
from protoad.data import fill_normals, grid_normals
from protoad.encoders import FeatureCache
from protoad.errors import ConfigError, DataError, MissingExtraError

__all__ = ["DETAILS", "DeployedDetector", "Inputs", "check_target", "describe", "export_detector"]

Inputs = Literal["frames", "prepared"]
DETAILS = "protoad.json"
"""What the description is called inside a .pt2 file."""

_PACKAGES = {".onnx": ("onnx", "onnxscript"), ".pt2": ()}
_WITH_BANKS = ("nearest_neighbour", "patchcore", "btf", "m3dm")  # searched part by part, for the memory it takes
_BATCH, _FRAME = 2, (48, 40)  # of the inputs to trace with: sizes of 0 and 1 would be taken for constants


def check_target(path: Path) -> None:
    """Fails before the work, not after.

    Raises:
        ConfigError: for another suffix, or a file that is there already.
        MissingExtraError: if a package is missing that writing takes.
    """
    if path.suffix not in _PACKAGES:
        raise ConfigError(f"{path}: expected a file name that ends in {' or '.join(_PACKAGES)}")
    if path.exists():
        raise ConfigError(f"{path}: is there already; delete it, or choose another --out")
    for package in _PACKAGES[path.suffix]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{package} is needed here but not installed; run: pip install 'protoad[onnx]'")


def export_detector(pirn: PIRNDetector, checkpoint: Path, path: Path, *, inputs: Inputs = "frames") -> None:
    """Writes a detector as ONNX model or as torch.export's program, as the suffix says; whole, or not at all.

    Args:
        pirn: as loaded from a checkpoint.
        checkpoint: its file, whose digest is written down.
        path: to write, FILE.onnx or FILE.pt2.
        inputs: see `DeployedDetector`.

    Raises:
        ConfigError: as `check_target`, for a detector with a memory bank, if an ONNX file would exceed the format's
            2 GB, or for an encoder that looks at points: no graph holds the search for neighbours.
        MissingExtraError: as `check_target`.
        DataError: if the file cannot be written.
    """
    check_target(path)
    if pirn.config.needs_points:
        raise ConfigError(f"{path}: {pirn.config.encoders['normals']} looks at points, and no graph holds that search")
    if pirn.config.detector in _WITH_BANKS:
        raise ConfigError(f"detector: {pirn.config.detector} keeps a memory bank, which is not exported; others are")
    module, details = DeployedDetector(pirn, inputs), describe(pirn, checkpoint, inputs)
    with torch.no_grad(), _quiet():
        if path.suffix == ".onnx":
            data = _onnx(module, details)
            write_atomically(path, lambda temporary: temporary.write_bytes(data), error=DataError)
        else:
            program = torch.export.export(module, module.example(), dynamic_shapes=_dynamic(module))
            files = {DETAILS: json.dumps(details, indent=1)}
            write_atomically(path, lambda temporary: _save_program(program, temporary, files), error=DataError)


def describe(pirn: PIRNDetector, checkpoint: Path, inputs: Inputs) -> dict[str, Any]:
    """What a file says of itself, plain JSON: all that is needed to prepare a part, judge it and draw its heatmap."""
    settings = pirn.config.preparation(pirn.category)
    return {
        "category": pirn.category,
        "modalities": list(pirn.config.modalities),
        "inputs": inputs,
        "image_size": pirn.config.image_size,
        "unit": pirn.unit,
        "plane_distance": settings.plane_distance if settings.foreground else None,
        "heatmap_range": {name: pirn.heatmap_range(name) for name in ("fused", *pirn.config.modalities)},
        "calibrations": {
            str(one.lost): _plain(asdict(pirn.calibrations[one.name]), pirn.calibrations[one.name].threshold)
            for one in conditions(pirn.config)
            if one.modalities == pirn.config.modalities
            and one.name in pirn.calibrations
            and pirn.calibrations[one.name].method == "split"  # cross asks detectors that are not in the file
        },
        "config": asdict(replace(pirn.config, weights=None)),  # nobody's folders
        "versions": {"protoad": protoad.__version__, "torch": torch.__version__},
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }


def _plain(calibration: dict[str, Any], threshold: float) -> dict[str, Any]:
    """JSON knows no infinity: None for a threshold that nothing exceeds."""
    return {**calibration, "threshold": threshold if math.isfinite(threshold) else None}


class DeployedDetector(nn.Module):
    """From frames, or what was prepared of them, to heatmaps and score: all that a detector does after decoding.

    Two steps stay outside, since no graph holds them: decoding files, and finding the foreground (RANSAC and connected
    components, `protoad.data.find_foreground`).

    Args:
        pirn: a trained detector.
        inputs: "frames", as decoded, or "prepared", as `protoad.data.prepare` gives them: for normals that were not
            computed from the cloud.
    """

    def __init__(self, pirn: PIRNDetector, inputs: Inputs = "frames") -> None:
        super().__init__()
        # copies: without gradients, and whatever the exporter does to them does not reach the original
        self.extractor, self.detector = deepcopy((pirn.extractor, pirn.detector))
        self.extractor.cache = FeatureCache()
        self.requires_grad_(False).eval()
        self.inputs = inputs
        self.modalities, self.size = pirn.config.modalities, pirn.config.image_size
        geometry = {"frames": ["xyz"], "prepared": ["normals", "valid"]}[inputs]
        needed = {"rgb": "rgb" in self.modalities, **dict.fromkeys(geometry, "normals" in self.modalities)}
        self.names = [name for name, used in {**needed, "foreground": pirn.config.foreground}.items() if used]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Gives score (b), heatmaps (b y x), and the share of the part without depth (b), in the order of `outputs`.

        Args:
            given: those of `names`, in their order. As frames: rgb (b y x 3) uint8; xyz (b y x 3) float32, metres, 0,
                NaN or infinity where invalid; foreground (b y x) bool. Prepared: rgb and normals (b 3 size size)
                float32 in [0, 1], valid and foreground (b size size) bool.
        """
        named = dict(zip(self.names, given, strict=True))
        images = named if self.inputs == "prepared" else _prepare(named, self.size)
        everything = torch.ones_like(images[self.modalities[0]][:, 0], dtype=torch.bool)
        valid = images.get("valid", everything)
        if "normals" in images and self.extractor.fill_holes:
            images = {**images, "normals": fill_normals(images["normals"], valid)}
        tokens = {m: self.extractor.encoders[m](images[m]) for m in self.modalities}
        mask = self.extractor.pool(images.get("foreground", everything))
        features = self.extractor.assemble(tokens, valid, mask)
        score, maps = self.detector(features)
        found = {"score": score, "depth_lost": features.lost, **{f"map_{name}": map_ for name, map_ in maps.items()}}
        return tuple(found[name] for name in self.outputs)

    def free_axes(self) -> tuple[tuple[dict[int, str], ...]]:
        """Axes of the inputs that may have any size, by name."""
        free = {0: "b", 1: "y", 2: "x"} if self.inputs == "frames" else {0: "b"}
        return (tuple(dict(free) for _ in self.names),)

    @property
    def outputs(self) -> list[str]:
        """Names of what `forward` gives."""
        lost = ["depth_lost"] if "normals" in self.modalities else []
        return ["score", "map_fused", *(f"map_{m}" for m in self.modalities), *lost]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with: a tilted plane."""
        height, width = _FRAME if self.inputs == "frames" else (self.size, self.size)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        plane = torch.stack([x, y, 5 + 0.3 * x], dim=-1)
        frames = {
            "rgb": (127 * plane.clamp(0, 1)).to(torch.uint8),
            "xyz": plane,
            "foreground": torch.ones(height, width, dtype=torch.bool),
            "valid": torch.ones(height, width, dtype=torch.bool),
        }
        prepared = torch.full((3, height, width), 0.5)
        made = frames if self.inputs == "frames" else {**frames, "rgb": prepared, "normals": prepared}
        return tuple(torch.stack([made[name]] * _BATCH) for name in self.names)


def _prepare(frames: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """What `protoad.data.prepare` does, for a batch of frames of any size, in operators that other runtimes know."""
    height, width = next(iter(frames.values())).shape[1:3]
    side = torch.sym_max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    centres = (2 * torch.arange(size) + 1) * side // (2 * size)

    def square(images: Tensor) -> Tensor:
        """(b y x c) to (b c side side)."""
        margins = (left, side - width - left, top, side - height - top)
        return pad(images.movedim(-1, 1).contiguous(), margins)

    def nearest(masks: Tensor) -> Tensor:
        """(b y x) bool to (b size size)."""
        return square(masks.unsqueeze(-1).to(torch.uint8))[:, 0][:, centres[:, None], centres] > 0

    prepared = {}
    if "rgb" in frames:
        colours = square(frames["rgb"].float()) / 255
        prepared["rgb"] = interpolate(colours, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    if "xyz" in frames:
        normals, valid = grid_normals(frames["xyz"])
        upright = square(normals * normals.new_tensor([1, -1, -1]))
        mean = interpolate(upright, (size, size), mode="bilinear", antialias=True)
        facing = normalize(mean, dim=1, eps=1e-6) * 0.5 + 0.5
        prepared["valid"] = nearest(valid)
        prepared["normals"] = torch.where(prepared["valid"].unsqueeze(1), facing, 0.5)
    if "foreground" in frames:
        prepared["foreground"] = nearest(frames["foreground"])
    return prepared


def _dynamic(module: DeployedDetector) -> tuple[Any, ...]:
    (axes,) = module.free_axes()
    return (tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in axes),)


def _save_program(program: Any, path: Path, files: dict[str, str]) -> None:
    with path.open("wb") as file:  # by its path, the name of a temporary file would get another suffix
        torch.export.save(program, file, extra_files=files)


def _onnx(module: DeployedDetector, details: Mapping[str, Any]) -> bytes:
    """The bytes of an ONNX file: values of `details` that are no text as JSON in its metadata."""
    from onnxscript import optimizer

    program: Any = torch.onnx.export(
        module,
        module.example(),
        dynamo=True,
        verbose=False,
        optimize=False,  # its patterns take longer than all the rest, and runtimes have their own
        dynamic_shapes=module.free_axes(),
        input_names=module.names,
        output_names=module.outputs,
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
    )
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    for name, value in details.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    try:
        return program.model_proto.SerializeToString()
    except ValueError as error:  # of protobuf
        raise ConfigError(f"the model is too large for one ONNX file ({error}); export it as FILE.pt2") from None


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort in ONNX, whose TopK takes the first of equals."""
    from onnxscript import opset18

    ops: Any = opset18
    size = ops.Gather(ops.Shape(values), ops.Constant(value_ints=[dim]))
    return ops.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters say about their own insides helps nobody who exports a detector."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    before = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
