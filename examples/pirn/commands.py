"""What the commands do, given their parsed arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path

from pirn.calibrating import calibrate_category, cross_calibrate_category
from pirn.categories import TrainJob, fail_after, train_all
from pirn.config import PIRNConfig
from pirn.demo import run_demo
from pirn.detector import CHECKPOINT_NAME, PIRNDetector, find_checkpoint, find_checkpoints, keep_previous, save_members
from pirn.experiment import evaluate as evaluate_category
from pirn.experiment import open_test, read_shots
from pirn.export import Inputs, check_target, export_detector
from pirn.inspection import PartSource, inspect_parts
from pirn.inspector import Inspector
from pirn.pictures import Gallery, write_grid
from pirn.preparation import parse_distances, prepare_all
from pirn.processes import count_workers, run_each
from pirn.reports import DetectionReport, EvaluationReport
from pirn.studies import run_study
from pirn.studies.request import Request
from pirn.updating import update_category
from pirn.watching import Watch
from protoad.data import (
    DEFAULT_SOURCE,
    PartFiles,
    PreparedSet,
    PrepareSettings,
    Source,
    list_files,
    list_prepared,
    metres,
)
from protoad.distributed import is_first
from protoad.encoders import FeatureCache
from protoad.errors import CheckpointError, ConfigError, DataError, ProtoadError
from protoad.metrics import DetectionMetrics
from protoad.report import format_table, summarise, write_json

__all__ = ["calibrate", "demo", "detect", "evaluate", "export", "prepare", "study", "train", "update", "watch"]


def demo(arguments: argparse.Namespace) -> None:
    """`pirn demo`."""
    run_demo(arguments.out, seed=arguments.seed, quick=arguments.quick, jobs=arguments.jobs)


def train(arguments: argparse.Namespace) -> None:
    """`pirn train`: one checkpoint per category, written when its training is done; one that is there is kept."""
    config = PIRNConfig(**{spec.name: getattr(arguments, spec.name) for spec in fields(PIRNConfig)})
    if arguments.faithful:
        config = config.faithful()
    source = Source.of(arguments.dataset, arguments.option)
    categories = list_prepared(arguments.root) or source.categories(arguments.root)
    chosen = categories if arguments.category == ["all"] else list(dict.fromkeys(arguments.category))
    if not chosen:
        raise DataError(f"{arguments.root}: holds no category; give the folder above them, or check --dataset")
    group, common = arguments.process_group, (config, arguments.root, arguments.shots, source, arguments.cache)
    if group is not None and arguments.jobs is not None:
        raise ConfigError("jobs: the processes are those of torchrun, which train one category after the other")
    if is_first(group):
        _check_writable(arguments.out)
    jobs = [TrainJob(name, *common, arguments.out, arguments.device, arguments.retrain) for name in chosen]
    workers = count_workers(arguments.jobs, arguments.device, len(jobs)) if group is None else None
    train_all(jobs, workers=workers, process_group=group)


def evaluate(arguments: argparse.Namespace) -> None:
    """`pirn evaluate`: a table per category and the mean, and the same as JSON."""
    if arguments.out is not None:
        _check_writable(arguments.out)
    folders = find_checkpoints(arguments.checkpoint)
    workers = count_workers(arguments.jobs, arguments.device, len(folders))
    evaluated = run_each(partial(_evaluate_one, arguments), folders, workers=workers, device=arguments.device)
    outcomes = dict(zip([folder.name for folder in folders], evaluated, strict=True))
    per_method: dict[str, dict] = {}
    for outcome in outcomes.values():
        if isinstance(outcome, ProtoadError):
            continue
        category, metrics = outcome
        for method, values in metrics.items():
            per_method.setdefault(method, {})[category] = values
    if per_method:
        results = {method: summarise(values) for method, values in per_method.items()}
        print(format_table(results))
        if arguments.json is not None:
            write_json(arguments.json, results)
    fail_after(outcomes)


def _evaluate_one(arguments: argparse.Namespace, folder: Path) -> tuple[str, dict[str, DetectionMetrics]]:
    """Category and metrics of one checkpoint."""
    pirn = PIRNDetector.load(folder, weights=arguments.weights, cache=FeatureCache(arguments.cache))
    pirn.to(arguments.device).source = _source(arguments, pirn.source)
    shots = None if arguments.no_yardsticks else read_shots(pirn, arguments.root)
    test = open_test(pirn.config, arguments.root, pirn.category, source=pirn.source)
    gallery, report = Gallery(), EvaluationReport(pirn)
    metrics = evaluate_category(pirn, test, shots, *(() if arguments.out is None else (gallery, report)))
    if arguments.out is not None:
        write_grid(arguments.out / f"{pirn.category}.png", pirn, gallery)
        report.write(arguments.out / f"{pirn.category}.html", metrics)
    return pirn.category, metrics


def calibrate(arguments: argparse.Namespace) -> None:
    """`pirn calibrate`: writes the calibration into the checkpoint; nothing is written if one of several fails."""
    cross = arguments.method == "cross"
    calibrated = []
    for folder in find_checkpoints(arguments.checkpoint):
        _check_writable(folder)
        pirn = PIRNDetector.load(folder, weights=arguments.weights, cache=FeatureCache(arguments.cache))
        stored, pirn.source = pirn.source, _source(arguments, pirn.source)
        pirn.to(arguments.device)
        way = cross_calibrate_category if cross else calibrate_category
        names, members = way(pirn, arguments.root, arguments.false_reject_rate, force=arguments.force)
        pirn.source = stored
        calibrated.append((folder, pirn, names, members))
    for folder, pirn, names, members in calibrated:
        save_members(folder, members)
        pirn.save(folder)
        what = "shots, each judged by a detector that has not seen it" if cross else "good parts held out"
        rate = next(iter(pirn.calibrations.values())).guaranteed_rate
        print(f"{pirn.category}: {len(names)} {what}; at most {rate:.3g} of good parts rejected")
        for condition, calibration in pirn.calibrations.items():
            print(f"  {condition}: rejected above {calibration.threshold:.2f}")


def update(arguments: argparse.Namespace) -> None:
    """`pirn update`: the checkpoint as it was is kept beside the new one."""
    folder = find_checkpoint(arguments.checkpoint, arguments.category)
    _check_writable(folder)
    pirn = PIRNDetector.load(folder, weights=arguments.weights, cache=FeatureCache(arguments.cache))
    stored, pirn.source = pirn.source, _source(arguments, pirn.source)
    names = None if arguments.add == ["all"] else arguments.add
    pirn.to(arguments.device)
    change = update_category(pirn, arguments.root, names, epochs=arguments.more_epochs, force=arguments.force)
    pirn.source = stored
    kept = keep_previous(folder)
    pirn.save(folder)
    print(f"{pirn.category}: {len(change.added)} good parts added, {len(pirn.shots)} shots now; as it was -> {kept}")
    for name in change.forced:
        print(f"  {name}: taken although it looks anomalous")
    print(f"  prototypes moved by {change.moved:.2%} of their length")
    for condition, after in change.after.items():
        before = change.before.get(condition)
        was = "" if before is None else f", was {before.threshold:.2f} by {len(before.scores)} parts"
        print(f"  {condition}: rejected above {after.threshold:.2f} by {len(after.scores)} parts{was}")


def _source(arguments: argparse.Namespace, known: Source) -> Source:
    """How a checkpoint's parts are to be read: as when it was trained, but for what the command line says."""
    asked = Source.of(arguments.dataset or known.dataset, arguments.option)
    return asked if asked.dataset != known.dataset else Source.of(known.dataset, [*known.options, *asked.options])


def detect(arguments: argparse.Namespace) -> None:
    """`pirn detect`: scores and overlays of one part, a folder of parts, or the test split of a data set."""
    single = arguments.rgb is not None or arguments.xyz is not None
    if sum([single, arguments.folder is not None, arguments.root is not None]) != 1:
        raise ConfigError(
            "give either --rgb FILE, --xyz FILE or both of one part, or --folder DIR with rgb/ and xyz/, or --root DIR "
            "of a data set"
        )
    _check_writable(arguments.out)
    inspector = _inspector(arguments)
    report = DetectionReport(inspector)
    inspect_parts(inspector, _new_parts(arguments, inspector.pirn), arguments.out, report.add)
    report.write(arguments.out / "report.html")


def _inspector(arguments: argparse.Namespace) -> Inspector:
    loaded = Inspector.load(arguments.checkpoint, category=arguments.category, weights=arguments.weights)
    loaded.pirn.source = _source(arguments, loaded.pirn.source)
    loaded.pirn.unit = metres(dict(arguments.option).get("unit", loaded.pirn.unit))
    return loaded.to(arguments.device)


def _new_parts(arguments: argparse.Namespace, pirn: PIRNDetector) -> Iterable[tuple[str, PartSource]]:
    """Name and place of the parts to inspect."""
    if arguments.root is not None:
        test = pirn.source.open(arguments.root, pirn.category, "test")
        return ((sample.name.replace("/", "_"), sample) for sample in test)
    if arguments.folder is None:
        return [((arguments.rgb or arguments.xyz).stem, PartFiles(arguments.rgb, arguments.xyz))]
    parts = list_files(arguments.folder, depth=pirn.camera is not None)
    if not parts:
        raise DataError(f"{arguments.folder}: its rgb/ and xyz/ hold no parts")
    return parts.items()


def watch(arguments: argparse.Namespace) -> None:
    """`pirn watch`: inspects parts as they arrive, until it is interrupted."""
    _check_writable(arguments.out)
    inspector = _inspector(arguments)
    watching = Watch(inspector, arguments.folder, arguments.out, patience=arguments.patience, say=_say)
    print(f"watching {arguments.folder} for parts of {inspector.pirn.category}; Ctrl-C ends it", flush=True)
    watching.run(interval=arguments.interval, until_idle=arguments.until_idle)


def _say(text: str) -> None:
    print(text, flush=True)


def prepare(arguments: argparse.Namespace) -> None:
    """`pirn prepare`: a cache that train and evaluate take as their root."""
    source = Source.of(arguments.dataset, arguments.option)
    categories = source.categories(arguments.root) if arguments.category == ["all"] else arguments.category
    _check_writable(arguments.out)
    distances = parse_distances(arguments.plane_distance, categories)
    settings = {
        name: PrepareSettings(arguments.size, arguments.foreground, distances[name], arguments.points)
        for name in categories
    }
    jobs = (os.cpu_count() or 1) if arguments.jobs is None else arguments.jobs
    prepare_all(source, arguments.root, arguments.out, settings, jobs=jobs)


def study(arguments: argparse.Namespace) -> None:
    """`pirn study`."""
    _check_writable(arguments.out)
    if arguments.root is None and (arguments.dataset is not None or arguments.option):
        raise ConfigError("dataset, option: give its --root as well; without, synthetic parts are made")
    base = PIRNConfig(encoder=arguments.encoder)
    source = Source.of(arguments.dataset or DEFAULT_SOURCE.dataset, arguments.option)
    if arguments.root is not None and (prepared := list_prepared(arguments.root)):
        source = PreparedSet(arguments.root, prepared[0], "train").source
    request = Request(
        arguments.out,
        seeds=tuple(dict.fromkeys(arguments.seeds)),
        quick=arguments.quick,
        shots=tuple(dict.fromkeys(arguments.shots)),
        root=arguments.root,
        source=source,
        categories=tuple(dict.fromkeys(arguments.category)),
        base=base.faithful() if arguments.faithful else base,
        weights=arguments.weights,
        jobs=arguments.jobs,
        device=arguments.device,
        cache=arguments.cache,
    )
    run_study(arguments.name, request)


def _check_writable(folder: Path) -> None:
    """Fails before the work, not after. Makes nothing: the data may yet turn out to be missing.

    Raises:
        CheckpointError: if nothing can be written there.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise CheckpointError(f"{folder}: cannot be written; choose another folder")


def export(arguments: argparse.Namespace) -> None:
    """`pirn export`: one file that runs without pirn, for ONNX Runtime or torch.export."""
    check_target(arguments.out)
    _check_writable(arguments.out.parent)
    folder = find_checkpoint(arguments.checkpoint, arguments.category)
    pirn = PIRNDetector.load(folder, weights=arguments.weights)
    inputs: Inputs = "prepared" if arguments.prepared else "frames"
    export_detector(pirn, folder / CHECKPOINT_NAME, arguments.out, inputs=inputs)
    size = arguments.out.stat().st_size / 1e6
    print(f"{pirn.category}: {inputs} in, score and heatmaps out, {size:.1f} MB -> {arguments.out}")
