"""A cache holds what `prepare` gives, bit for bit, and never more, less or half of it."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from protoad.data import (
    MVTec3D,
    PreparedSet,
    PrepareSettings,
    Source,
    list_prepared,
    prepare,
    prepare_dataset,
    prepared_cache,
    write_dataset,
)
from protoad.errors import ConfigError, DataError

SMALL = PrepareSettings(64)
PARTS = ["cookie", "tile"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, parts=PARTS, train=3, validation=0, test_good=1, test_per_defect=1, seed=0, size=64)
    return root


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    prepare_dataset(Source(), root, out, dict.fromkeys(PARTS, SMALL))
    return out


def _copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _run(root: Path, out: Path, **settings: float) -> list[str]:
    """Prepares the cookies; gives the names of those that were made."""
    outcomes = prepare_dataset(Source(), root, out, {"cookie": replace(SMALL, **settings)})
    return [outcome.name for outcome in outcomes if outcome.made and not outcome.error]


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_read_is_what_prepare_gives(root: Path, made: Path, split: str) -> None:
    source, cached = MVTec3D(root, "tile", split), PreparedSet(made, "tile", split, SMALL)
    assert (cached.names, cached.defects, cached.labels) == (source.names, source.defects, source.labels)
    assert len(cached) == len(source) > 0
    for sample, part, again in zip(source, cached, cached[:], strict=True):
        assert part.xyz is again.xyz is None
        for fresh, read, reread in zip(prepare(sample, 64)[:5], part[:5], again[:5], strict=True):
            assert fresh.dtype == read.dtype
            assert torch.equal(fresh, read)
            assert torch.equal(fresh, reread)


def test_source_files_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    copy = _copy(root, tmp_path)
    before = _bytes(copy)
    prepare_dataset(Source(), copy, tmp_path / "out", {"cookie": SMALL})
    assert _bytes(copy) == before


def test_two_processes_write_the_same_bytes_as_one(root: Path, made: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    settings = dict.fromkeys(PARTS, SMALL)
    prepare_dataset(Source(), root, tmp_path, settings, jobs=2, on_part=lambda o, n: seen.append((o.name, n)))
    assert _bytes(tmp_path) == _bytes(made)
    assert [total for _, total in seen] == [len(seen)] * len(seen)
    expected = [MVTec3D(root, part, split).names for part in PARTS for split in ("train", "test")]
    assert [name for name, _ in seen] == [name for names in expected for name in names]


def test_the_manifest_says_how_it_was_made(made: Path) -> None:
    assert list_prepared(made) == PARTS
    assert list_prepared(made / "cookie") == list_prepared(made / "nowhere") == []
    manifest = json.loads((made / "cookie" / "manifest.json").read_text())
    assert manifest["settings"] == {"size": 64, "foreground": True, "plane_distance": 0.005}
    assert manifest["versions"].keys() == {"protoad", "numpy", "torch"}
    assert manifest["dataset"] == "mvtec3d"
    part = manifest["splits"]["train"][0]
    assert part["name"] == "train/good/000"
    assert part["reason"].startswith("The table was removed")
    foreground = PreparedSet(made, "cookie", "train")[0].foreground
    assert part["foreground"] == pytest.approx(float(foreground.float().mean()))


def test_only_what_is_missing_is_made(root: Path, made: Path, tmp_path: Path) -> None:
    data, cache = _copy(root, tmp_path), Path(shutil.copytree(made, tmp_path / "cache"))
    assert _run(data, cache) == []
    assert _bytes(cache) == _bytes(made)
    good = cache / "cookie" / "train" / "good"
    (good / "000.npz").unlink()
    half = good / "001.npz"
    half.write_bytes(half.read_bytes()[:2000])
    flipped = bytearray((good / "002.npz").read_bytes())
    flipped[5000] ^= 1
    (good / "002.npz").write_bytes(flipped)
    with pytest.raises(DataError, match=r"000\.npz: no such file; prepare the data set again"):
        PreparedSet(cache, "cookie", "train")[0]
    for index in (1, 2):
        with pytest.raises(DataError, match=rf"00{index}\.npz: damaged"):
            PreparedSet(cache, "cookie", "train")[index]
    assert _run(data, cache) == [f"train/good/00{index}" for index in range(3)]
    assert _bytes(cache) == _bytes(made)

    shutil.copy(data / "cookie/train/good/rgb/001.png", data / "cookie/train/good/rgb/000.png")
    assert _run(data, cache) == ["train/good/000"]
    sample = MVTec3D(data, "cookie", "train")[0]
    assert torch.equal(PreparedSet(cache, "cookie", "train")[0].rgb, prepare(sample, 64).rgb)
    shutil.rmtree(data / "cookie/test/hole")
    assert _run(data, cache) == []
    assert "test/hole/000" not in PreparedSet(cache, "cookie", "test").names


def test_a_part_that_cannot_be_read_is_named_and_the_others_go_on(root: Path, tmp_path: Path) -> None:
    data, cache = _copy(root, tmp_path), tmp_path / "cache"
    broken = data / "cookie/train/good/xyz/001.tiff"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:999])
    outcomes = prepare_dataset(Source(), data, cache, {"cookie": SMALL})
    errors = {outcome.name: outcome.error for outcome in outcomes if outcome.error}
    assert errors.keys() == {"train/good/001"}
    assert "001.tiff" in errors["train/good/001"]
    train = PreparedSet(cache, "cookie", "train")
    assert len(train) == 3
    assert train[0].valid.any()
    assert train[2].valid.any()
    with pytest.raises(DataError, match=r"001\.npz: could not be prepared: .*001\.tiff"):
        train[1]
    broken.write_bytes(whole)
    assert _run(data, cache) == ["train/good/001"]
    assert PreparedSet(cache, "cookie", "train")[1].valid.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 32}, "size 64 and plane distance 0.005 m, asked for size 32 and"),
        ({"plane_distance": 0.002}, "asked for size 64 and plane distance 0.002 m"),
        ({"foreground": False}, "asked for size 64 and no search for the foreground"),
    ],
)
def test_other_settings_are_refused(root: Path, made: Path, change: dict[str, float], words: str) -> None:
    before = _bytes(made)
    with pytest.raises(DataError, match=words) as error:
        _run(root, made, **change)
    assert "give the same settings, or delete that folder, or prepare into another" in str(error.value)
    with pytest.raises(DataError, match=words):
        PreparedSet(made, "cookie", "train", replace(SMALL, **change))
    assert _bytes(made) == before


def test_settings_and_content_make_the_key(root: Path, made: Path, tmp_path: Path) -> None:
    _run(root, tmp_path, plane_distance=0.004)
    keys = [json.loads((out / "cookie/manifest.json").read_text())["splits"]["train"] for out in (made, tmp_path)]
    assert len({part["key"] for split in keys for part in split}) == 6
    # files of other settings that lost their manifest are made anew, not believed
    (tmp_path / "cookie" / "manifest.json").unlink()
    assert len(_run(root, tmp_path)) == sum(len(MVTec3D(root, "cookie", split)) for split in ("train", "test"))


def test_caches_that_cannot_be_trusted_are_refused(root: Path, made: Path, tmp_path: Path) -> None:
    cache = _copy(made, tmp_path)
    path = cache / "cookie" / "manifest.json"
    whole = json.loads(path.read_text())
    for content, words in (
        (json.dumps({**whole, "recipe": 0}), r"another version of protoad \(recipe 0, now 1\)"),
        (json.dumps({**whole, "dataset": "eyecandies"}), "holds parts of eyecandies, not mvtec3d"),
        ("{", "not a readable manifest"),
        ("[]", "not a readable manifest"),
        (json.dumps({"recipe": 1}), "not a readable manifest"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=words):
            _run(root, cache)
    path.write_text(json.dumps(whole))
    shutil.copy(cache / "tile/train/good/000.npz", cache / "cookie/train/good/000.npz")
    with pytest.raises(DataError, match=r"is not the file that manifest\.json lists"):
        PreparedSet(cache, "cookie", "train")[0]


def test_an_interruption_leaves_whole_files(root: Path, made: Path, tmp_path: Path) -> None:
    names: list[str] = []

    def interrupt(outcome: object, total: int) -> None:
        names.append(str(outcome))
        if len(names) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(Source(), root, tmp_path, {"cookie": SMALL}, on_part=interrupt)
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["000.npz", "001.npz", "manifest.json"]
    with pytest.raises(DataError, match="has no prepared split 'train'; found: none, it was interrupted"):
        PreparedSet(tmp_path, "cookie", "train")
    with pytest.raises(DataError, match="was prepared with size 64"):
        _run(root, tmp_path, size=32)
    assert "train/good/000" not in _run(root, tmp_path)
    assert _bytes(tmp_path / "cookie") == _bytes(made / "cookie")


def test_an_interruption_stops_all_processes(root: Path, tmp_path: Path) -> None:
    def interrupt(outcome: object, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(Source(), root, tmp_path, dict.fromkeys(PARTS, SMALL), jobs=2, on_part=interrupt)
    assert not multiprocessing.active_children()
    assert 1 <= len(list(tmp_path.rglob("*.npz"))) < 12


def test_a_crash_while_writing_leaves_no_half_file(root, made, tmp_path, monkeypatch) -> None:
    def crash(file, **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared_cache.np, "savez", crash)
    with pytest.raises(KeyboardInterrupt):
        _run(root, tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]


def test_a_process_that_dies_is_one_sentence(root: Path, tmp_path: Path) -> None:
    def kill(outcome: object, total: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    settings = dict.fromkeys(PARTS, SMALL)
    with pytest.raises(DataError, match=r"process that prepared parts died.*with fewer jobs: what is done is kept"):
        prepare_dataset(Source(), root, tmp_path, settings, jobs=2, on_part=kill)


def test_bad_calls(root: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs: expected 1 or more, got 0"):
        prepare_dataset(Source(), root, tmp_path, {"cookie": SMALL}, jobs=0)
    with pytest.raises(ConfigError, match="unknown data set 'coco'"):
        prepare_dataset(Source("coco"), root, tmp_path, {"cookie": SMALL})
    with pytest.raises(DataError, match="has no category 'bagel'"):
        prepare_dataset(Source(), root, tmp_path, {"cookie": SMALL, "bagel": SMALL})
    with pytest.raises(DataError, match=r"bagel/manifest\.json: no such file"):
        PreparedSet(made, "bagel", "train")
    with pytest.raises(DataError, match="has no prepared split 'validation'; found: train, test"):
        PreparedSet(made, "cookie", "validation")
    assert not list(tmp_path.iterdir())


def test_numbers_survive_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    *images, xyz = torch.from_numpy(rng.random((3, 3, 33, 33), dtype=np.float32))
    xyz[:, 5:7] = torch.nan
    masks = torch.from_numpy(rng.random((3, 33, 33)) < 0.5)  # 33 x 33 x 3 bits fill no whole number of bytes
    stored = prepared_cache.StoredPart(prepared_cache.Prepared(*images, *masks, xyz), "why", "key")
    prepared_cache.write_part(tmp_path / "a.npz", stored)
    read = prepared_cache.read_part(tmp_path / "a.npz")
    assert read[1:] == ("why", "key")
    for before, after in zip(stored.part, read.part, strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)


def test_points_are_kept_on_demand(root: Path, made: Path, tmp_path: Path) -> None:
    with_points = replace(SMALL, points=True)
    assert len(_run(root, tmp_path, points=True)) > 0
    assert _run(root, tmp_path, points=True) == []
    parts, sample = PreparedSet(tmp_path, "cookie", "train", with_points), MVTec3D(root, "cookie", "train")[0]
    for before, after in zip(prepare(sample, 64, points=True), parts[0], strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)
    # they do no harm where nobody asks for them, and are missed where somebody does
    assert PreparedSet(tmp_path, "cookie", "train", SMALL).names == parts.names
    with pytest.raises(DataError, match=r"prepared without its points.*\(--points\), and for that delete that folder"):
        PreparedSet(made, "cookie", "train", with_points)
    with pytest.raises(DataError, match="prepared without its points"):
        _run(root, made, points=True)
    with pytest.raises(DataError, match=r"0\.005 m, points kept, asked for size 64 and plane distance 0\.005 m;"):
        _run(root, tmp_path)
    with pytest.raises(DataError, match=r"size 64 and .* asked for size 32 and plane distance 0\.005 m, points kept"):
        PreparedSet(made, "cookie", "train", replace(with_points, size=32))
