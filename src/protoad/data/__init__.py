"""Readers, point clouds to normal maps, few-shot selection, and the tensors a detector takes."""

from __future__ import annotations

from protoad.data.fewshot import select_shots
from protoad.data.files import read_mask, read_rgb, read_xyz, write_mask, write_rgb, write_xyz
from protoad.data.mvtec3d import MVTec3D, list_categories, load_sample
from protoad.data.pointcloud import Normals, encode_normals, foreground_mask, normals_from_xyz
from protoad.data.prepare import Prepared, prepare
from protoad.data.sample import Sample

__all__ = [
    "MVTec3D",
    "Normals",
    "Prepared",
    "Sample",
    "encode_normals",
    "foreground_mask",
    "list_categories",
    "load_sample",
    "normals_from_xyz",
    "prepare",
    "read_mask",
    "read_rgb",
    "read_xyz",
    "select_shots",
    "write_mask",
    "write_rgb",
    "write_xyz",
]
