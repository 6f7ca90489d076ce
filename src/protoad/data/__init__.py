"""Readers, point clouds to normal maps, few-shot selection, and the tensors a detector takes."""

from __future__ import annotations

from protoad.data.augment import augment, random_copies
from protoad.data.fewshot import select_shots
from protoad.data.files import read_mask, read_rgb, read_xyz, write_mask, write_rgb, write_xyz
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
from protoad.data.mvtec3d import MVTec3D, list_categories, load_sample, pair_files
from protoad.data.pointcloud import Normals, encode_normals, normals_from_xyz
from protoad.data.prepare import Prepared, PrepareSettings, prepare
from protoad.data.prepare_dataset import Outcome, prepare_dataset
from protoad.data.prepared_cache import PreparedSet, list_prepared
from protoad.data.sample import Sample
from protoad.data.synthetic import DEFECT_TYPES, PART_TYPES, render_part, write_dataset

__all__ = [
    "DEFECT_TYPES",
    "EVERYTHING_KEPT",
    "PART_TYPES",
    "PLANE_DISTANCE",
    "PLANE_DISTANCES",
    "Foreground",
    "MVTec3D",
    "Normals",
    "Outcome",
    "PrepareSettings",
    "Prepared",
    "PreparedSet",
    "Sample",
    "SquareMap",
    "augment",
    "encode_normals",
    "find_foreground",
    "foreground_mask",
    "list_categories",
    "list_prepared",
    "load_sample",
    "normals_from_xyz",
    "pair_files",
    "plane_distance",
    "prepare",
    "prepare_dataset",
    "random_copies",
    "read_mask",
    "read_rgb",
    "read_xyz",
    "render_part",
    "select_shots",
    "write_dataset",
    "write_mask",
    "write_rgb",
    "write_xyz",
]
