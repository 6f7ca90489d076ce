"""The same settings give the same file, and other threads or batches nearly the same scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pirn.cli import main
from pirn.config import PIRNConfig
from pirn.detector import PIRNDetector
from pirn.experiment import open_test, train_category

from protoad.data import Prepared, write_dataset
from protoad.encoders import FeatureCache

ENCODERS = ["filter_bank", "timm:mobilenetv2_050,weights=random"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, parts=("cookie",), train=3, validation=0, test_good=4, test_per_defect=1, seed=0, size=96)
    return root


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _scores(pirn: PIRNDetector, test: list[Prepared], batch: int) -> torch.Tensor:
    """Of all test parts, so many at a time, encoded anew."""
    pirn.extractor.cache = FeatureCache()
    chunks = [test[start : start + batch] for start in range(0, len(test), batch)]
    return torch.cat([pirn.detector(pirn.extractor(chunk)).score for chunk in chunks])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_threads_and_batches_hardly_move_a_score(root: Path, encoder: str, threads: None) -> None:
    config = PIRNConfig(encoder=encoder, image_size=96, epochs=2, num_prototypes=4)
    pirn, _ = train_category(config, root, "cookie", 3)
    test = list(open_test(config, root, "cookie").parts)
    assert len(test) >= 8
    expected = _scores(pirn, test, 8)
    for count, batch in ((2, 8), (1, 1)):
        torch.set_num_threads(count)
        torch.testing.assert_close(_scores(pirn, test, batch), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1  # a score that says nothing would pass, too


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_same_seed_gives_the_same_file(root: Path, tmp_path: Path, encoder: str) -> None:
    files = []
    for seed, name in (("0", "one"), ("0", "two"), ("1", "other")):
        torch.manual_seed(len(files))  # what went before must not matter
        argv = ["train", "--root", str(root), "--category", "cookie", "--encoder", encoder, "--seed", seed]
        assert main([*argv, "--out", str(tmp_path / name), "--image-size", "96", "--epochs", "2"]) == 0
        files.append((tmp_path / name / "cookie" / "checkpoint.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]
