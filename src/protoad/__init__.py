"""protoad: parts for prototype-based anomaly detection with RGB images and surface normals.

`protoad.nn` holds the modules, `protoad.ops` the functions under them, `protoad.encoders` frozen feature extractors,
`protoad.data` readers and the synthetic scenes. Importing this package loads torch and nothing heavier.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from protoad import nn, ops
from protoad.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EncoderError,
    MissingExtraError,
    ProtoadError,
    ShapeError,
    TrainingError,
)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EncoderError",
    "MissingExtraError",
    "ProtoadError",
    "ShapeError",
    "TrainingError",
    "__version__",
    "nn",
    "ops",
]

try:
    __version__ = version("protoad")
except PackageNotFoundError:  # run from source, not installed
    __version__ = "0.0.0+source"
