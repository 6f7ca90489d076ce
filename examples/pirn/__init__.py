"""PIRN: few-shot anomaly detection from RGB and surface normals, composed from protoad.

`python -m pirn --help` lists the commands.
"""

from pirn.config import PIRNConfig
from pirn.detector import PIRNDetector
from pirn.inspector import Inspection, Inspector
from pirn.model import PIRN

__all__ = ["PIRN", "Inspection", "Inspector", "PIRNConfig", "PIRNDetector"]
