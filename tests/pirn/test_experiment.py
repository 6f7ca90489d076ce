"""An evaluation that goes through the test parts a few at a time says what one of all parts at once would."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pirn import PIRNConfig, experiment
from pirn.detector import yardsticks
from pirn.experiment import Seen, evaluate, open_test, train_category
from pirn.pictures import Gallery

from protoad.data import write_dataset
from protoad.errors import DataError
from protoad.metrics import evaluate_maps

CONFIG = PIRNConfig(image_size=96, epochs=1, num_prototypes=4, seed=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, parts=("cookie",), train=3, validation=0, test_good=4, test_per_defect=1, seed=0, size=96)
    return root


@pytest.fixture(scope="module")
def trained(root: Path):
    return train_category(CONFIG, root, "cookie", 3)


def test_every_method_is_measured_on_every_part(trained, root: Path) -> None:
    pirn, shots = trained
    test = open_test(CONFIG, root, "cookie")
    seen: list[Seen] = []
    metrics = evaluate(pirn, test, shots, seen.append)

    parts = list(open_test(CONFIG, root, "cookie").parts)
    masks = torch.stack([part.mask for part in parts]).numpy()
    detectors = {"pirn": pirn.detector}
    detectors |= {name: rival.fit(shots) for name, rival in yardsticks(pirn.extractor, CONFIG).items()}
    assert metrics.keys() == detectors.keys()
    for name, detector in detectors.items():
        whole = detector(pirn.extractor(parts))
        exact = evaluate_maps(whole.score.numpy(), np.array(test.labels), whole.maps["fused"].numpy(), masks)
        assert metrics[name] == pytest.approx(exact, abs=1e-6)

    assert [(one.name, one.defect, one.label) for one in seen] == list(
        zip(test.names, test.defects, test.labels, strict=True)
    )
    expected = pirn.detector(pirn.extractor(parts))
    torch.testing.assert_close(torch.cat([one.prediction.score for one in seen]), expected.score, rtol=1e-5, atol=1e-5)
    for name, maps in expected.maps.items():
        torch.testing.assert_close(torch.cat([one.prediction.maps[name] for one in seen]), maps, rtol=1e-4, atol=1e-4)
    for one, part in zip(seen, parts, strict=True):
        assert torch.equal(one.part.rgb, part.rgb)
        assert one.prediction.maps["fused"].untyped_storage().nbytes() == 4 * 96 * 96  # keeps no others alive


def test_a_few_parts_are_in_memory_at_a_time(trained, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pirn, shots = trained
    monkeypatch.setattr(experiment, "_CHUNK", 2)
    test = open_test(CONFIG, root, "cookie")
    images: list[weakref.ref] = []
    most_alive = 0

    def watched():
        nonlocal most_alive
        for part in test.parts:
            images.append(weakref.ref(part.rgb))
            most_alive = max(most_alive, sum(image() is not None for image in images))
            yield part

    evaluate(pirn, test._replace(parts=watched()), shots)
    assert len(images) == len(test.names) >= 10
    assert most_alive <= 5  # those of a chunk, of the one before, and the one being read
    assert len(pirn.extractor.cache._memory) <= 4  # two modalities of the last chunk


def test_the_gallery_keeps_the_first_of_each_kind(trained, root: Path) -> None:
    pirn, _ = trained
    test, gallery = open_test(CONFIG, root, "cookie"), Gallery()
    evaluate(pirn, test, None, gallery)
    assert list(gallery.first) == list(dict.fromkeys(test.defects))
    for defect, seen in gallery.first.items():
        assert seen.name == test.names[test.defects.index(defect)]


def test_a_damaged_part_is_named(trained, root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(root, broken)
    victim = broken / "cookie" / "test" / "good" / "rgb" / "003.png"
    victim.write_bytes(victim.read_bytes()[:40])
    pirn, _ = trained
    test = open_test(CONFIG, broken, "cookie")
    with pytest.raises(DataError, match=r"003\.png"):
        evaluate(pirn, test, None)
