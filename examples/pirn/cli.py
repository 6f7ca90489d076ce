"""The command line of pirn, a command for each step from data to decisions."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import protoad
from pirn import commands
from pirn.checking import run_check
from pirn.config import PIRNConfig
from pirn.processes import choose_device, deterministic, show_plainly
from pirn.studies import STUDIES
from protoad.data import DATASETS
from protoad.distributed import join
from protoad.errors import ConfigError, ProtoadError

__all__ = ["main"]

# what the functions that take the options of a data set call their own arguments
_NO_OPTIONS = ("name", "root", "dataset", "category", "categories", "split", "report", "jobs", "progress")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives 0, 2 after one sentence on stderr when input is at fault, 130
    when interrupted, or 141 when nobody reads the output any more.
    """
    arguments = _parser().parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            show_plainly()
            stack.enter_context(deterministic(getattr(arguments, "deterministic", False)))
            arguments.device = choose_device(getattr(arguments, "device", "cpu"))
            arguments.process_group = stack.enter_context(join(arguments.device))
            if arguments.process_group is not None and arguments.run is not commands.train:
                raise ConfigError("only pirn train runs in several processes; start this command without torchrun")
            arguments.run(arguments)
    except ProtoadError as error:
        print(f"pirn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pirn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pirn", description="Few-shot anomaly detection from RGB and surface normals."
    )
    parser.add_argument("--version", action="version", version=f"pirn of protoad {protoad.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_check,
        _add_prepare,
        _add_train,
        _add_evaluate,
        _add_calibrate,
        _add_detect,
        _add_watch,
        _add_update,
        _add_export,
        _add_study,
    ):
        add(subparsers)
    return parser


def _add_demo(subparsers: Any) -> None:
    parser = _command(subparsers, "demo", commands.demo, "learn synthetic parts from ten good ones")
    parser.add_argument("--seed", type=int, default=0, help="of the parts, the shots and the training")
    parser.add_argument("--quick", action="store_true", help="two parts, few images: no result")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write")
    parser.add_argument("--jobs", type=int, default=None, help="parts trained at a time (default: one per core)")


def _add_check(subparsers: Any) -> None:
    parser = _command(subparsers, "check", run_check, "read a whole data set and say what is in it and what is wrong")
    _add_dataset(parser, "mvtec3d")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the categories")
    parser.add_argument("--category", nargs="+", default=["all"], metavar="NAME", help="categories (default: all)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write everything found as JSON")
    parser.add_argument(
        "--jobs", type=int, default=None, help="processes that read (default: one per core, if it pays)"
    )


def _add_prepare(subparsers: Any) -> None:
    parser = _command(subparsers, "prepare", commands.prepare, "compute normals and foreground of a data set once")
    _add_dataset(parser, "mvtec3d")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the categories")
    parser.add_argument("--category", nargs="+", default=["all"], metavar="NAME", help="categories (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="CACHE", help="cache to write, or to go on with")
    parser.add_argument("--size", type=int, default=224, help="side of the square images, pixels (default: 224)")
    parser.add_argument(
        "--plane-distance",
        nargs="+",
        metavar="[NAME=]METRES",
        help="up to where a point is table, for all or one category (default: 0.005 dowel=0.002)",
    )
    parser.add_argument(
        "--foreground", action=argparse.BooleanOptionalAction, default=True, help="find the part by its table"
    )
    parser.add_argument("--points", action="store_true", help="keep the points too, for --encoder-normals fpfh")
    parser.add_argument("--jobs", type=int, default=None, help="parts prepared at a time (default: one per core)")


def _add_train(subparsers: Any) -> None:
    parser = _command(subparsers, "train", commands.train, "learn one or more products from a few good parts of each")
    _add_dataset(parser, "mvtec3d")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the categories, or a cache")
    parser.add_argument("--category", nargs="+", required=True, metavar="NAME", help="categories to learn, or: all")
    parser.add_argument("--shots", type=int, default=None, help="good parts per category, drawn by seed (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints, OUT/CATEGORY/")
    parser.add_argument(
        "--faithful", action="store_true", help="the paper's settings; overrides the flags they concern"
    )
    parser.add_argument(
        "--retrain", action="store_true", help="replace checkpoints that are there, instead of keeping them"
    )
    _add_jobs(parser)
    _add_device(parser)
    _add_cache(parser)
    _add_config(parser)


def _add_evaluate(subparsers: Any) -> None:
    parser = _command(subparsers, "evaluate", commands.evaluate, "measure checkpoints beside the yardsticks")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that train wrote")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the categories, or a cache")
    _add_dataset(parser, None)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the table as JSON")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="write a grid of pictures per category")
    parser.add_argument("--no-yardsticks", action="store_true", help="the detector alone; needs no training parts")
    _add_jobs(parser)
    _add_device(parser)
    _add_cache(parser)
    _add_weights(parser)


def _add_calibrate(subparsers: Any) -> None:
    text = "choose the threshold from good parts that were not learnt from"
    parser = _command(subparsers, "calibrate", commands.calibrate, text)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that train wrote")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the categories, or a cache")
    parser.add_argument(
        "--false-reject-rate", type=float, default=0.05, metavar="SHARE", help="of good parts (default: 0.05)"
    )
    parser.add_argument(
        "--method",
        choices=("split", "cross"),
        default="split",
        help="split: on good parts that were no shots; cross: where there are none, on the shots, each left out in "
        "turn: as many detectors to ask, and twice the rate is promised (default: split)",
    )
    parser.add_argument("--force", action="store_true", help="go on with too few parts: then nothing is rejected")
    _add_device(parser)
    _add_dataset(parser, None)
    _add_cache(parser)
    _add_weights(parser)


def _add_detect(subparsers: Any) -> None:
    parser = _command(subparsers, "detect", commands.detect, "score new parts and draw where they deviate")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that train wrote")
    parser.add_argument("--category", default=None, metavar="NAME", help="which checkpoint, if several are there")
    parser.add_argument("--rgb", type=Path, default=None, metavar="FILE", help="image of one part, if there is one")
    parser.add_argument(
        "--xyz", type=Path, default=None, metavar="FILE", help="its points or depth image, if there is one"
    )
    parser.add_argument("--folder", type=Path, default=None, metavar="DIR", help="or: a folder with rgb/, xyz/ or both")
    parser.add_argument("--root", type=Path, default=None, metavar="DIR", help="or: a data set, for its test split")
    _add_dataset(parser, None)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for scores and overlays")
    _add_device(parser)
    _add_weights(parser)


def _add_watch(subparsers: Any) -> None:
    parser = _command(subparsers, "watch", commands.watch, "inspect parts as their files arrive in a folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with rgb/ and xyz/, where the parts arrive")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that train wrote")
    parser.add_argument("--category", default=None, metavar="NAME", help="which checkpoint, if several are there")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for scores and overlays")
    parser.add_argument(
        "--patience",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="wait for files that are cut or missing (default: 5)",
    )
    parser.add_argument(
        "--interval", type=float, default=0.5, metavar="SECONDS", help="between two looks at the folder (default: 0.5)"
    )
    parser.add_argument(
        "--until-idle", type=float, default=None, metavar="SECONDS", help="end when nothing came for so long"
    )
    _add_dataset(parser, None)
    _add_device(parser)
    _add_weights(parser)


def _add_update(subparsers: Any) -> None:
    parser = _command(subparsers, "update", commands.update, "teach a detector more good parts, and calibrate it anew")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that train wrote")
    parser.add_argument("--category", default=None, metavar="NAME", help="which checkpoint, if several are there")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the categories, or a cache")
    parser.add_argument(
        "--add", nargs="+", required=True, metavar="NAME", help="such as train/good/012, or: all that are no shots"
    )
    parser.add_argument("--more-epochs", type=int, default=3, metavar="N", help="to train on (default: 3)")
    parser.add_argument(
        "--force", action="store_true", help="take parts that look anomalous, and go on with too few to calibrate with"
    )
    _add_dataset(parser, None)
    _add_cache(parser)
    _add_device(parser)
    _add_weights(parser)


def _add_study(subparsers: Any) -> None:
    parser = _command(subparsers, "study", commands.study, "answer a question about PIRN and its rivals by measuring")
    names = [*STUDIES, "all"]
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to go on with")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(5)), metavar="SEED", help="of everything (default: 0 to 4)"
    )
    parser.add_argument("--quick", action="store_true", help="few, small, the first seed only: no result")
    parser.add_argument(
        "--shots", type=_shots, nargs="+", default=[], metavar="N", help="numbers, or: all (default: the study's own)"
    )
    parser.add_argument("--root", type=Path, default=None, help="data set to measure on (default: synthetic parts)")
    parser.add_argument("--category", nargs="+", default=[], metavar="NAME", help="some of them (default: all)")
    _add_dataset(parser, None)
    parser.add_argument("--encoder", default="filter_bank", metavar="NAME", help="filter_bank, or timm:MODEL[,...]")
    parser.add_argument(
        "--weights",
        type=Path,
        default=None,
        metavar="PATH",
        help="its weight file, or a folder of files named after timm's models (default: the published weights)",
    )
    parser.add_argument("--faithful", action="store_true", help="lay the study's settings over the paper's, not ours")
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help="processes (default: one per core or GPU)")
    _add_device(parser)
    _add_cache(parser)


def _shots(text: str) -> int | None:
    """A number of shots; None for all."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, or all, got {text!r}")
    return int(text)


def _add_export(subparsers: Any) -> None:
    text = "write a detector as one file that runs without pirn"
    parser = _command(subparsers, "export", commands.export, text)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that train wrote")
    parser.add_argument("--category", default=None, metavar="NAME", help="which checkpoint, if several are there")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="FILE.onnx, or FILE.pt2 of torch.export"
    )
    parser.add_argument(
        "--prepared", action="store_true", help="take prepared images and normals instead of frames as they are decoded"
    )
    _add_weights(parser)


def _command(subparsers: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.set_defaults(run=run)
    return parser


def _add_dataset(parser: argparse.ArgumentParser, default: str | None) -> None:
    names = ", ".join(DATASETS)
    parser.add_argument(
        "--dataset", default=default, metavar="NAME", help=f"{names} (default: {default or 'as when it was trained'})"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_assignment,
        metavar="KEY=VALUE",
        help="of the data set, such as light=0 or unit=mm; may be repeated (docs/data.md lists them)",
    )


def _assignment(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    if key in _NO_OPTIONS:
        raise argparse.ArgumentTypeError(f"{key!r} is no option of a data set")
    return key, value


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    text = "categories at a time, each in its own process (default: one per GPU, or one)"
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help=text)


def _add_device(parser: argparse.ArgumentParser) -> None:
    text = "cpu, cuda or cuda:N (default: cuda if there is one)"
    parser.add_argument("--device", default=None, metavar="NAME", help=text)
    parser.add_argument("--deterministic", action="store_true", help="the same bits in every run on a GPU, too; slower")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default=None, metavar="FILE", help="the encoder's weight file, if it has moved")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", type=Path, default=None, metavar="DIR", help="keep features there across runs (default: in memory)"
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    """One flag per field of `PIRNConfig`."""
    group = parser.add_argument_group("settings")
    hints = get_type_hints(PIRNConfig)
    for spec in fields(PIRNConfig):
        flag, hint = f"--{spec.name.replace('_', '-')}", hints[spec.name]
        text = spec.metadata["help"]
        if spec.default is not None:
            text = f"{text} (default: {spec.default})"
        options: dict[str, Any] = {"default": spec.default, "help": text}
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(hint) is Literal:
            options["choices"] = get_args(hint)
        else:
            options["type"] = next(kind for kind in (*get_args(hint), hint) if kind is not type(None))
            options["metavar"] = options["type"].__name__.upper()
        group.add_argument(flag, **options)
