"""Every error protoad raises on purpose. The command line turns any of them into one sentence and exit code 2."""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EncoderError",
    "MissingExtraError",
    "ProtoadError",
    "ShapeError",
    "TrainingError",
]


class ProtoadError(Exception):
    """Base of all errors that name what was found, what was expected and what to do."""


class ShapeError(ProtoadError, ValueError):
    """A tensor has another shape than documented."""


class ConfigError(ProtoadError, ValueError):
    """A setting has a value outside its range, or settings contradict each other."""


class DataError(ProtoadError, ValueError):
    """A file, folder or array of data is missing, damaged or inconsistent."""


class CheckpointError(ProtoadError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class CalibrationError(ProtoadError, ValueError):
    """Too few good parts for the false reject rate asked for, or scores that are no scores."""


class EncoderError(ProtoadError, ValueError):
    """An encoder is unknown, or its weights cannot be had."""


class TrainingError(ProtoadError, FloatingPointError):
    """Training diverged."""


class MissingExtraError(ProtoadError, ImportError):
    """An optional dependency is not installed."""
