"""What the processes of a pool do in test_processes.py; here, where they can import it."""

from __future__ import annotations

import os

import torch

from protoad.errors import DataError


def look(item: int) -> tuple[object, ...]:
    if item == 3:
        raise DataError("three")
    if item == 4:
        os._exit(1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return item, visible, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
