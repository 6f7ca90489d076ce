"""How far threads and batches move the scores of one detector, and those of one trained with other threads.

    python benchmarks/determinism.py filter_bank timm:vit_tiny_patch16_224,weights=random

Prints one JSON line per encoder: the largest differences of a score from those at one thread, eight parts at a time.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from pirn.config import PIRNConfig
from pirn.detector import PIRNDetector
from pirn.experiment import open_test, train_category

from protoad.data import Prepared, write_dataset
from protoad.encoders import FeatureCache


def scores(pirn: PIRNDetector, test: list[Prepared], threads: int, batch: int) -> torch.Tensor:
    torch.set_num_threads(threads)
    pirn.extractor.cache = FeatureCache()  # encoded anew
    chunks = [test[start : start + batch] for start in range(0, len(test), batch)]
    return torch.cat([pirn.detector(pirn.extractor(chunk)).score for chunk in chunks])


def measure(root: Path, encoder: str) -> dict[str, float]:
    config, trained = PIRNConfig(encoder=encoder), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        trained.append(train_category(config, root, "cookie", 10)[0])
    test = list(open_test(config, root, "cookie").parts)
    expected = scores(trained[0], test, 1, 8)
    others = {
        "2 threads": scores(trained[0], test, 2, 8),
        "alone": scores(trained[0], test, 1, 1),
        "2 threads, alone": scores(trained[0], test, 2, 1),
        "trained with 2 threads": scores(trained[1], test, 1, 8),
    }
    return {"largest": expected.max().item(), **{n: (s - expected).abs().max().item() for n, s in others.items()}}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, parts=("cookie",), train=10, validation=0, test_good=4, test_per_defect=1, seed=0)
        for name in sys.argv[1:] or ["filter_bank"]:
            print(json.dumps({"encoder": name, **measure(Path(folder), name)}), flush=True)
