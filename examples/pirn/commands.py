"""What the commands do, given their parsed arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from pirn.config import PIRNConfig
from pirn.demo import run_demo
from pirn.detector import CHECKPOINT_NAME, PIRNDetector, clear_snapshot
from pirn.experiment import calibrate_category, read_shots, read_test, train_category
from pirn.experiment import evaluate as evaluate_category
from pirn.export import Inputs, check_target, export_detector
from pirn.inspection import inspect_parts
from pirn.pictures import write_grid
from pirn.preparation import parse_distances, prepare_all
from protoad.data import PrepareSettings, Sample, Source, list_prepared, load_sample, pair_files
from protoad.encoders import FeatureCache
from protoad.errors import CheckpointError, ConfigError, DataError, TrainingError
from protoad.report import format_table, summarise, write_json

__all__ = ["calibrate", "demo", "detect", "evaluate", "export", "prepare", "train"]


def demo(arguments: argparse.Namespace) -> None:
    """`pirn demo`."""
    run_demo(arguments.out, seed=arguments.seed, quick=arguments.quick, jobs=arguments.jobs)


def train(arguments: argparse.Namespace) -> None:
    """`pirn train`: one checkpoint per category, written when its training is done."""
    config = PIRNConfig(**{spec.name: getattr(arguments, spec.name) for spec in fields(PIRNConfig)})
    if arguments.faithful:
        config = config.faithful()
    source = Source.of(arguments.dataset, arguments.option)
    categories = list_prepared(arguments.root) or source.categories(arguments.root)
    _check_writable(arguments.out)
    for category in categories if arguments.category == ["all"] else arguments.category:
        folder = arguments.out / category
        cache = FeatureCache(arguments.cache)
        try:
            pirn, _ = train_category(
                config, arguments.root, category, arguments.shots, source=source, cache=cache, folder=folder
            )
        except TrainingError:
            clear_snapshot(folder)  # going on from there would end in the same
            raise
        path = pirn.save(folder)
        last = pirn.model.history[-1]
        print(
            f"{category}: {len(pirn.shots)} shots, {len(pirn.model.history)} epochs, loss {last['loss']:.4f}, "
            f"leak {last['leak']:.3f}{_watched(last)} -> {path}"
        )


def _watched(figures: dict[str, float]) -> str:
    """Gates and prototype displacement per layer, as text."""
    shown = [f"{name} {value:.3f}" for name, value in figures.items() if name.startswith(("gate", "displacement"))]
    return f", {', '.join(shown)}" if shown else ""


def evaluate(arguments: argparse.Namespace) -> None:
    """`pirn evaluate`: a table per category and the mean, and the same as JSON."""
    if arguments.out is not None:
        _check_writable(arguments.out)
    per_method: dict[str, dict] = {}
    for folder in _checkpoints(arguments.checkpoint):
        pirn = PIRNDetector.load(folder, weights=arguments.weights, cache=FeatureCache(arguments.cache))
        pirn.source = _source(arguments, pirn.source)
        shots = None if arguments.no_yardsticks else read_shots(pirn, arguments.root)
        test = read_test(pirn.config, arguments.root, pirn.category, source=pirn.source)
        metrics, prediction = evaluate_category(pirn, test, shots)
        for method, values in metrics.items():
            per_method.setdefault(method, {})[pirn.category] = values
        if arguments.out is not None:
            write_grid(arguments.out / f"{pirn.category}.png", pirn.detector, test, prediction)
    results = {method: summarise(values) for method, values in per_method.items()}
    print(format_table(results))
    if arguments.json is not None:
        write_json(arguments.json, results)


def calibrate(arguments: argparse.Namespace) -> None:
    """`pirn calibrate`: writes the calibration into the checkpoint; nothing is written if one of several fails."""
    calibrated = []
    for folder in _checkpoints(arguments.checkpoint):
        _check_writable(folder)
        pirn = PIRNDetector.load(folder, weights=arguments.weights, cache=FeatureCache(arguments.cache))
        pirn.source = _source(arguments, pirn.source)
        names = calibrate_category(pirn, arguments.root, arguments.false_reject_rate, force=arguments.force)
        calibrated.append((folder, pirn, names))
    for folder, pirn, names in calibrated:
        pirn.save(folder)
        print(f"{pirn.category}: {len(names)} good parts held out, at most {arguments.false_reject_rate:.3g} rejected")
        for modalities, calibration in pirn.calibrations.items():
            print(f"  {modalities}: rejected above {calibration.threshold:.2f}")


def _source(arguments: argparse.Namespace, known: Source) -> Source:
    """How a checkpoint's parts are to be read: as when it was trained, but for what the command line says."""
    asked = Source.of(arguments.dataset or known.dataset, arguments.option)
    return asked if asked.dataset != known.dataset else Source.of(known.dataset, [*known.options, *asked.options])


def detect(arguments: argparse.Namespace) -> None:
    """`pirn detect`: scores and overlays of one part, a folder of parts, or the test split of a data set."""
    single = arguments.rgb is not None or arguments.xyz is not None
    ways = [single, arguments.folder is not None, arguments.root is not None]
    if sum(ways) != 1 or (single and None in (arguments.rgb, arguments.xyz)):
        raise ConfigError(
            "give either --rgb FILE and --xyz FILE of one part, or --folder DIR with rgb/ and xyz/, or --root DIR of a "
            "data set"
        )
    _check_writable(arguments.out)
    pirn = PIRNDetector.load(_one_checkpoint(arguments), weights=arguments.weights)
    inspect_parts(pirn, _new_parts(arguments, pirn), arguments.out)


def _new_parts(arguments: argparse.Namespace, pirn: PIRNDetector) -> Iterable[tuple[str, Sample]]:
    """Name and sample of the parts to inspect."""
    if arguments.root is not None:
        test = _source(arguments, pirn.source).open(arguments.root, pirn.category, "test")
        return ((sample.name.replace("/", "_"), sample) for sample in test)
    if arguments.rgb is not None:
        parts = {arguments.rgb.stem: (arguments.rgb, arguments.xyz)}
    else:
        parts = pair_files(arguments.folder)
        if not parts:
            raise DataError(f"{arguments.folder}: its rgb/ and xyz/ hold no parts")
    unit = "mm" if ("unit", "mm") in pirn.source.options else "m"
    return ((name, load_sample(*paths, unit=unit)) for name, paths in parts.items())


def prepare(arguments: argparse.Namespace) -> None:
    """`pirn prepare`: a cache that train and evaluate take as their root."""
    source = Source.of(arguments.dataset, arguments.option)
    categories = source.categories(arguments.root) if arguments.category == ["all"] else arguments.category
    _check_writable(arguments.out)
    distances = parse_distances(arguments.plane_distance, categories)
    settings = {name: PrepareSettings(arguments.size, arguments.foreground, distances[name]) for name in categories}
    jobs = (os.cpu_count() or 1) if arguments.jobs is None else arguments.jobs
    prepare_all(source, arguments.root, arguments.out, settings, jobs=jobs)


def _checkpoints(folder: Path) -> list[Path]:
    """Folders with a checkpoint: the one given, or those right below it."""
    if (folder / CHECKPOINT_NAME).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{CHECKPOINT_NAME}"))
    if not found:
        raise CheckpointError(f"{folder}: no {CHECKPOINT_NAME} there or one folder below; give the folder train wrote")
    return found


def _one_checkpoint(arguments: argparse.Namespace) -> Path:
    """The folder with the one checkpoint there is, or with that of the category asked for."""
    found = {folder.name: folder for folder in _checkpoints(arguments.checkpoint)}
    if arguments.category is not None and arguments.category not in found:
        raise CheckpointError(f"{arguments.checkpoint}: has no {arguments.category!r}; found: {', '.join(found)}")
    if arguments.category is None and len(found) > 1:
        raise ConfigError(f"{arguments.checkpoint}: holds {', '.join(found)}; choose one with --category")
    return found[arguments.category or next(iter(found))]


def _check_writable(folder: Path) -> None:
    """Fails before the work, not after. Makes nothing: the data may yet turn out to be missing.

    Raises:
        CheckpointError: if nothing can be written there.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise CheckpointError(f"{folder}: cannot be written; choose another --out")


def export(arguments: argparse.Namespace) -> None:
    """`pirn export`: one file that runs without pirn, for ONNX Runtime or torch.export."""
    check_target(arguments.out)
    _check_writable(arguments.out.parent)
    folder = _one_checkpoint(arguments)
    pirn = PIRNDetector.load(folder, weights=arguments.weights)
    inputs: Inputs = "prepared" if arguments.prepared else "frames"
    export_detector(pirn, folder / CHECKPOINT_NAME, arguments.out, inputs=inputs)
    size = arguments.out.stat().st_size / 1e6
    print(f"{pirn.category}: {inputs} in, score and heatmaps out, {size:.1f} MB -> {arguments.out}")
