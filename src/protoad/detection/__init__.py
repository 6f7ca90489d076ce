"""Parts in, heatmaps and scores out, around anything that reconstructs features. Knows no particular detector."""

from protoad.detection.detector import Detector, Prediction, Reconstructor
from protoad.detection.features import FeatureExtractor, Features

__all__ = ["Detector", "FeatureExtractor", "Features", "Prediction", "Reconstructor"]
