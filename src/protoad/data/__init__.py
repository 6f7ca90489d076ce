"""Readers, point clouds to normal maps, few-shot selection, and the tensors a detector takes."""

from __future__ import annotations

from protoad.data.fewshot import select_shots
from protoad.data.files import read_mask, read_rgb, read_xyz, write_mask, write_rgb, write_xyz
from protoad.data.foreground import foreground_mask
from protoad.data.mvtec3d import MVTec3D, list_categories, load_sample, pair_files
from protoad.data.pointcloud import Normals, encode_normals, grid_normals, normals_from_xyz
from protoad.data.prepare import Prepared, prepare
from protoad.data.sample import Sample
from protoad.data.synthetic import DEFECT_TYPES, PART_TYPES, render_part, write_dataset

__all__ = [
    "DEFECT_TYPES",
    "PART_TYPES",
    "MVTec3D",
    "Normals",
    "Prepared",
    "Sample",
    "encode_normals",
    "foreground_mask",
    "grid_normals",
    "list_categories",
    "load_sample",
    "normals_from_xyz",
    "pair_files",
    "prepare",
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
