"""Readers, point clouds to normal maps, few-shot selection, and the tensors a detector takes."""

from __future__ import annotations

from protoad.data.augment import augment, random_copies
from protoad.data.camera import Intrinsics, xyz_from_depth
from protoad.data.check import Findings, Problem, SplitFindings, check_dataset
from protoad.data.clouds import read_cloud
from protoad.data.dataset import Dataset, DataWarning, MissingSplitError, Part, metres
from protoad.data.eyecandies import Eyecandies
from protoad.data.fewshot import select_shots
from protoad.data.files import (
    EmptyCloudError,
    read_depth,
    read_mask,
    read_normals,
    read_rgb,
    read_xyz,
    write_mask,
    write_rgb,
    write_xyz,
)
from protoad.data.folder import CONFIG_NAME, TEMPLATE, Folder
from protoad.data.foreground import (
    EVERYTHING_KEPT,
    PLANE_DISTANCE,
    PLANE_DISTANCES,
    Foreground,
    find_foreground,
    foreground_mask,
    plane_distance,
)
from protoad.data.geometry import SquareMap
from protoad.data.holes import HoleKind, fill_normals, lose_depth
from protoad.data.mvtec3d import ADAM3D, MVTec3D, load_sample
from protoad.data.pointcloud import Normals, encode_normals, grid_normals, normals_from_xyz
from protoad.data.points import read_points
from protoad.data.prepare import Prepared, PrepareSettings, prepare, prepare_colour, without_depth
from protoad.data.prepare_dataset import Outcome, prepare_dataset
from protoad.data.prepared_cache import PreparedSet, list_prepared
from protoad.data.real_iad_d3 import RealIADD3
from protoad.data.registry import DATASETS, DEFAULT_SOURCE, Source, list_categories, open_dataset
from protoad.data.sample import Sample
from protoad.data.station import PartFiles, list_files, read_part
from protoad.data.synthetic import DEFECT_TYPES, PART_TYPES, render_part, write_dataset

__all__ = [
    "ADAM3D",
    "CONFIG_NAME",
    "DATASETS",
    "DEFAULT_SOURCE",
    "DEFECT_TYPES",
    "EVERYTHING_KEPT",
    "PART_TYPES",
    "PLANE_DISTANCE",
    "PLANE_DISTANCES",
    "TEMPLATE",
    "DataWarning",
    "Dataset",
    "EmptyCloudError",
    "Eyecandies",
    "Findings",
    "Folder",
    "Foreground",
    "HoleKind",
    "Intrinsics",
    "MVTec3D",
    "MissingSplitError",
    "Normals",
    "Outcome",
    "Part",
    "PartFiles",
    "PrepareSettings",
    "Prepared",
    "PreparedSet",
    "Problem",
    "RealIADD3",
    "Sample",
    "Source",
    "SplitFindings",
    "SquareMap",
    "augment",
    "check_dataset",
    "encode_normals",
    "fill_normals",
    "find_foreground",
    "foreground_mask",
    "grid_normals",
    "list_categories",
    "list_files",
    "list_prepared",
    "load_sample",
    "lose_depth",
    "metres",
    "normals_from_xyz",
    "open_dataset",
    "plane_distance",
    "prepare",
    "prepare_colour",
    "prepare_dataset",
    "random_copies",
    "read_cloud",
    "read_depth",
    "read_mask",
    "read_normals",
    "read_part",
    "read_points",
    "read_rgb",
    "read_xyz",
    "render_part",
    "select_shots",
    "without_depth",
    "write_dataset",
    "write_mask",
    "write_rgb",
    "write_xyz",
    "xyz_from_depth",
]
