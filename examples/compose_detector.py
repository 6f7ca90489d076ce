"""A detector of your own from the parts of protoad: `python examples/compose_detector.py --part cookie`.

docs/compose.md goes through it step by step.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from protoad_detectors import GaussianReconstructor, NearestNeighbourReconstructor
from torch import Tensor, nn

from protoad.calibration import calibrate
from protoad.data import PART_TYPES, Prepared, open_dataset, prepare, write_dataset, write_rgb
from protoad.detection import Detector, FeatureExtractor, Features, Prediction, Reconstructor
from protoad.encoders import build_encoder
from protoad.losses import soft_mining_loss
from protoad.metrics import DetectionMetrics, evaluate_maps
from protoad.nn import GRUPrototypeRefiner, SinkhornAssign
from protoad.ops import kmeans
from protoad.scoring import ResidualScore
from protoad.training import Schedule, train
from protoad.viz import GridRow, sample_grid


def read_parts(root: Path, part: str, split: str, size: int) -> tuple[list[Prepared], list[str]]:
    """Gives the parts of a split as a detector takes them, and the kind of defect of each, or "good"."""
    found = open_dataset("mvtec3d", root, part, split)
    return [prepare(sample, size) for sample in found], found.defects


def build_extractor(shots: Sequence[Prepared], size: int) -> FeatureExtractor:
    """Gives the frozen encoders of both modalities."""
    encoders = {m: build_encoder("filter_bank", image_size=size) for m in ("rgb", "normals")}
    return FeatureExtractor(encoders, image_size=size).fit(shots)


class PrototypeReconstructor(Reconstructor):
    """Rebuilds every token from a few prototypes, which first take in the part they are used on.

    Args:
        dims: modality -> d of its tokens.
        num_prototypes: of each modality.
        epochs: passes over the shots.
        seed: of the start and of the order of the shots.
    """

    def __init__(self, dims: Mapping[str, int], *, num_prototypes: int = 30, epochs: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.num_prototypes, self.epochs, self.seed = num_prototypes, epochs, seed
        self.assign = SinkhornAssign(epsilon=0.02)
        self.refine = nn.ModuleDict({m: GRUPrototypeRefiner(d, update_bias=3.0) for m, d in dims.items()})
        self.prototypes = nn.ParameterDict({m: torch.zeros(num_prototypes, d) for m, d in dims.items()})
        for modality in dims:
            self.register_buffer(f"scale_{modality}", torch.ones(()))

    def forward(self, tokens: Mapping[str, Tensor], token_mask: Tensor) -> dict[str, Tensor]:
        return {m: self._rebuild(m, z, token_mask) for m, z in tokens.items()}

    def _rebuild(self, modality: str, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Gives (b n d) tokens made of prototypes that were refined by them."""
        scale = self.get_buffer(f"scale_{modality}")
        tokens = tokens / scale
        prototypes = self.prototypes[modality].expand(len(tokens), -1, -1)
        context = self.assign(tokens, prototypes, token_mask).context
        prototypes = self.refine[modality](prototypes, context)
        return scale * self.assign(tokens, prototypes, token_mask).reconstruction

    def fit(self, shots: Features) -> PrototypeReconstructor:
        self._start(shots)
        self.train()
        train(
            self.parameters(),
            lambda indices: (self._loss(shots.pick(indices)), {}),
            shots=len(shots.mask),
            schedule=Schedule(epochs=self.epochs, seed=self.seed),
        )
        self.eval()
        return self

    @torch.no_grad()
    def _start(self, shots: Features) -> None:
        """Prototypes start as k-means centres of the shots' tokens, in units of their root mean square."""
        for modality, tokens in shots.tokens.items():
            kept = tokens[shots.mask]
            scale = self.get_buffer(f"scale_{modality}").copy_(kept.square().mean().sqrt())
            self.prototypes[modality].copy_(kmeans(kept / scale, self.num_prototypes, seed=self.seed))

    def _loss(self, shots: Features) -> Tensor:
        """Gives the loss of some shots, all modalities summed."""
        rebuilt = self(shots.tokens, shots.mask)
        losses = [soft_mining_loss(z, shots.tokens[m], token_mask=shots.mask) for m, z in rebuilt.items()]
        return torch.stack(losses).sum()


def build_detectors(extractor: FeatureExtractor) -> dict[str, Detector]:
    """Gives the new detector and two yardsticks, all under the same score."""
    dims = {m: encoder.dim for m, encoder in extractor.encoders.items()}
    reconstructors = {
        "prototypes": PrototypeReconstructor(dims),
        "nearest neighbours": NearestNeighbourReconstructor(),
        "Gaussian": GaussianReconstructor(dims),
    }
    return {
        name: Detector(each, ResidualScore("whitened"), grid=extractor.grid, image_size=extractor.image_size)
        for name, each in reconstructors.items()
    }


def measure(said: Prediction, parts: Sequence[Prepared], bad: np.ndarray) -> DetectionMetrics:
    """Gives the metrics of what a detector said of some parts, of which some are bad."""
    masks = torch.stack([part.mask for part in parts])
    return evaluate_maps(said.score.numpy(), bad, said.maps["fused"].numpy(), masks.numpy())


def draw(detector: Detector, said: Prediction, parts: Sequence[Prepared], rows: Mapping[str, int]) -> np.ndarray:
    """Gives a grid of pictures: label -> which part, and what the detector said of it, all on one scale."""
    columns = {"rgb_map": "rgb", "normals_map": "normals", "fused_map": "fused"}
    grid = [
        GridRow(
            label=f"{label}\n{said.score[index]:.1f}",
            rgb=to_picture(parts[index].rgb),
            normals=to_picture(parts[index].normals),
            mask=parts[index].mask.numpy(),
            **{column: said.maps[name][index].numpy() for column, name in columns.items()},
        )
        for label, index in rows.items()
    ]
    return sample_grid(grid, limits={column: detector.heatmap_range(name) for column, name in columns.items()})


def to_picture(image: Tensor) -> np.ndarray:
    """(3 y x) in [0, 1] -> (y x 3) uint8."""
    return (255 * image.permute(1, 2, 0)).round().byte().numpy()


def run(part: str, out: Path, *, size: int = 224, seed: int = 0) -> dict[str, DetectionMetrics]:
    """Learns a synthetic part from ten good ones, sets a threshold, measures, and draws OUT/PART.png."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root, parts=(part,), train=10, validation=19, test_good=20, test_per_defect=4, seed=seed)
        shots, _ = read_parts(root, part, "train", size)
        more_good, _ = read_parts(root, part, "validation", size)
        tests, defects = read_parts(root, part, "test", size)

    torch.manual_seed(seed)
    extractor = build_extractor(shots, size)
    detectors = build_detectors(extractor)
    for detector in detectors.values():
        detector.fit(extractor(shots))

    features, bad = extractor(tests), np.array(defects) != "good"
    predictions = {name: detector(features) for name, detector in detectors.items()}
    metrics = {name: measure(said, tests, bad) for name, said in predictions.items()}
    for name, found in metrics.items():
        print(f"{part}, {name}: image AUROC {found.image_auroc:.3f}, AUPRO {found.aupro:.3f}")

    detector, said = detectors["prototypes"], predictions["prototypes"]
    judge = calibrate(detector(extractor(more_good)).score.tolist(), false_reject_rate=0.05)
    rejected = np.array([judge(score).reject for score in said.score.tolist()])
    print(f"rejected above {judge.threshold:.2f}: {rejected[~bad].mean():.0%} of the good parts, ", end="")
    print(f"{rejected[bad].mean():.0%} of the defective ones")

    rows = {kind: defects.index(kind) for kind in ("good", "bump", "hole", "color")}
    write_rgb(out / f"{part}.png", draw(detector, said, tests, rows))
    return metrics


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="A detector composed from the parts of protoad.")
    parser.add_argument("--part", choices=PART_TYPES, default="cookie", help="synthetic part (default: cookie)")
    parser.add_argument("--out", type=Path, default=Path("runs/composed"), help="folder for the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the parts and the training")
    arguments = parser.parse_args()
    run(arguments.part, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
