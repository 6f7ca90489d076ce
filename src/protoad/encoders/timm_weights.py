"""Everything about getting a timm model that can go wrong, in one place: the import, the name, the file, the hub."""

from __future__ import annotations

import difflib
import importlib
import logging
import socket
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from protoad import _lazy
from protoad.errors import EncoderError

__all__ = ["RANDOM", "create_timm_model", "transformer_stride"]

RANDOM = "random"
_CONNECT_SECONDS = 3.0
# Tops of a network, never part of the tokens.
_UNUSED = ("norm", "fc_norm", "head", "head_norm", "classifier", "fc")
_logger = logging.getLogger(__name__)
_stand_in_operators: list[torch.library.Library] = []


def create_timm_model(model: str, weights: str | Path | None, *, seed: int = 0, **create: Any) -> nn.Module:
    """`timm.create_model` that either returns a model with all its weights or says in one sentence why not.

    Args:
        model: timm's name, with or without a tag.
        weights: a .safetensors or .pth file; None for the published weights; "random" for a seeded random start.
        seed: of random weights.
        create: passed on to `timm.create_model`.

    Raises:
        EncoderError: if the model is unknown, an argument does not fit it, or its weights are missing, damaged or
            another model's.
        MissingExtraError: if timm is not installed.
    """
    timm = _import_timm()
    _check_name(timm, model)
    file = _locate(timm, model, weights)
    if file is not None:
        create["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
    missing = _MissingKeys()
    try:
        with torch.random.fork_rng(devices=[]), missing:
            torch.manual_seed(seed)
            built: nn.Module = timm.create_model(model, pretrained=weights != RANDOM, **create)
    except Exception as error:  # timm, torch, safetensors and the hub raise a dozen types between them
        raise EncoderError(_explain(model, file, weights, error)) from error
    lost = missing.needed()
    if lost:
        where = file if file is not None else "the published weights"
        raise EncoderError(
            f"{model}: {where} holds no weights for {len(lost)} of its tensors, such as {lost[0]!r}; "
            "give the weights of this model, these belong to another model"
        )
    return built


def transformer_stride(model: str, **create: Any) -> int | None:
    """Pixels per token of a plain vision transformer, None for any other network; builds a skeleton without memory.

    Raises:
        EncoderError: if the model is unknown or an option does not fit it.
    """
    timm = _import_timm()
    _check_name(timm, model)
    try:
        with torch.device("meta"):
            skeleton: Any = timm.create_model(model, num_classes=0, **create)
    except Exception as error:
        raise EncoderError(_explain(model, None, RANDOM, error)) from error
    needed = ("blocks", "num_prefix_tokens", "prune_intermediate_layers", "forward_intermediates")
    return int(skeleton.feature_info[0]["reduction"]) if all(hasattr(skeleton, name) for name in needed) else None


def _import_timm() -> ModuleType:
    """Imports timm, also where torchvision's binary was built for another torch.

    A CPU build of torch beside the usual torchvision wheel fails with "operator torchvision::nms does not exist", and
    timm with it. Declaring the two operators, only after that failure, lets torchvision load; its box operators stay
    unusable, and nothing here needs them.
    """
    try:
        return _lazy.require("timm", extra="timm")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _stand_in_operators.append(library)  # the declarations live as long as the object
    _logger.warning("torchvision does not match this torch; its box operators are off, timm works without them")
    return importlib.import_module("timm")


def _check_name(timm: ModuleType, model: str) -> None:
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"close names: {', '.join(near)}" if near else "timm.list_models() lists what exists"
        raise EncoderError(f"timm has no model {architecture!r}; {hint}")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise EncoderError(f"timm has no weights {tag!r} for {architecture}; there are: {', '.join(tags) or 'none'}")


def _locate(timm: ModuleType, model: str, weights: str | Path | None) -> Path | None:
    """The weight file to load, if it is already on this machine."""
    if weights == RANDOM:
        return None
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise EncoderError(f"{path}: no such weight file; give a .safetensors or .pth file of {model}")
        return path
    config = timm.get_pretrained_cfg(model)
    hub_id = config and config.hf_hub_id
    if not hub_id:
        raise EncoderError(f"timm publishes no weights for {model}; pass weights=FILE with a .safetensors or .pth file")
    cached = _cached(hub_id, config.hf_hub_filename)
    if cached is None:
        _check_hub(model, hub_id)
    return cached


def _cached(hub_id: str, filename: str | None) -> Path | None:
    hub = _lazy.require("huggingface_hub", extra="timm")
    for name in [filename] if filename else ["model.safetensors", "pytorch_model.bin"]:
        found = hub.try_to_load_from_cache(hub_id, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _check_hub(model: str, hub_id: str) -> None:
    """Fails within seconds where the hub cannot be reached; the hub's own client would retry for almost a minute."""
    constants = _lazy.require("huggingface_hub.constants", extra="timm")
    advice = f"pass a weight file (--weights FILE or weights=FILE), or fetch {hub_id} once where there is a network"
    if constants.HF_HUB_OFFLINE:
        raise EncoderError(f"{model}: its weights are not in the local cache and HF_HUB_OFFLINE is set; {advice}")
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    target = urllib.parse.urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}") if proxy else endpoint
    port = target.port or (80 if target.scheme == "http" else 443)
    if not _reachable(target.hostname or "", port):
        raise EncoderError(
            f"{model}: its weights are not in the local cache and the model hub is out of reach; {advice}"
        )


def _reachable(host: str, port: int) -> bool:
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
            answers.append(True)
        except OSError:
            answers.append(False)

    # Looking up the name has no time limit of its own, so the attempt runs beside and may be left behind.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(2 * _CONNECT_SECONDS)
    return answers == [True]


def _explain(model: str, file: Path | None, weights: str | Path | None, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()
    text = " ".join(line.strip() for line in reason[:2])[:300]
    if isinstance(error, TypeError) and "unexpected keyword" in text:
        return f"{model} does not take an option given to it: {text}"
    foreign = any(sign in str(error) for sign in ("size mismatch", "Missing key", "Unexpected key"))
    if file is not None and foreign:
        detail = next((line.strip() for line in reason if "mismatch" in line or "key(s)" in line), text)[:300]
        return f"{file}: these weights belong to another model or size than {model}: {detail}"
    if file is not None:
        cause = f"{type(error).__name__}: {text}"
        return f"{file}: cannot be read as weights of {model} ({cause}); give a .safetensors or .pth file of this model"
    if weights == RANDOM:
        return f"timm cannot build {model}: {text}"
    return f"the weights of {model} could not be fetched: {text}; pass weights=FILE with a .safetensors or .pth file"


class _MissingKeys(logging.Handler):
    """Collects what timm only mentions in its log: tensors that the weight file did not fill.

    timm loads backbones non-strictly, so a file of another model may fill nothing and leave random weights behind.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._logger = logging.getLogger("timm.models._builder")
        self._keys: list[str] = []

    def __enter__(self) -> _MissingKeys:
        self._before = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._logger.removeHandler(self)
        level, self._logger.propagate = self._before
        self._logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Missing keys ("):
            self._keys += message.partition("(")[2].partition(")")[0].split(", ")

    def needed(self) -> list[str]:
        """The missing tensors that blocks or levels need; heads and final norms are not asked."""
        return [key for key in self._keys if key.partition(".")[0] not in _UNUSED]
