from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from protoad.data import MVTec3D, list_categories
from protoad.data.files import read_mask, read_rgb, read_xyz
from protoad.data.foreground import foreground_mask
from protoad.data.pointcloud import normals_from_xyz
from protoad.data.sample import Sample
from protoad.data.synthetic import DEFECT_TYPES, PART_TYPES, render_part, write_dataset

SIZE = 96
COLOUR_ONLY = {"color"}
GEOMETRY = {"bump", "dent", "hole", "cut", "contamination"}


def equal(a: Sample, b: Sample) -> bool:
    return (
        np.array_equal(a.rgb, b.rgb) and np.array_equal(a.xyz, b.xyz, equal_nan=True) and np.array_equal(a.mask, b.mask)
    )


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def height_over_table(xyz: np.ndarray) -> np.ndarray:
    """Metres over a plane fitted to the frame's border, by least squares."""
    border = np.zeros(xyz.shape[:2], dtype=bool)
    border[:5] = border[-5:] = True
    points = xyz[border & np.isfinite(xyz[..., 2])].astype(np.float64)
    plane = np.linalg.lstsq(np.c_[points[:, :2], np.ones(len(points))], points[:, 2], rcond=None)[0]
    away = xyz[..., 0] * plane[0] + xyz[..., 1] * plane[1] + plane[2] - xyz[..., 2]
    return away / np.sqrt(1 + plane[0] ** 2 + plane[1] ** 2)


@pytest.fixture(scope="module")
def pairs() -> dict[tuple[str, str], tuple[Sample, Sample]]:
    twins = {part: render_part(part, seed=7, size=SIZE) for part in PART_TYPES}
    return {
        (part, defect): (twins[part], render_part(part, seed=7, defect=defect, size=SIZE))
        for part in PART_TYPES
        for defect in DEFECT_TYPES
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    write_dataset(
        root, parts=("tile", "rope"), train=3, validation=1, test_good=2, test_per_defect=1, seed=5, size=SIZE
    )
    return root


def test_offers_enough_kinds() -> None:
    assert len(PART_TYPES) >= 5
    assert set(DEFECT_TYPES) == COLOUR_ONLY | GEOMETRY


@pytest.mark.parametrize("part", PART_TYPES)
def test_the_same_seed_gives_the_same_part_and_another_seed_another(part: str) -> None:
    first = render_part(part, seed=1, defect="dent", size=SIZE)
    assert equal(first, render_part(part, seed=1, defect="dent", size=SIZE))
    other = render_part(part, seed=2, defect="dent", size=SIZE)
    assert np.abs(first.rgb.astype(int) - other.rgb).mean() > 3
    assert not np.array_equal(first.mask, other.mask)


def test_twin_is_equal_outside_the_mask(pairs: dict[tuple[str, str], tuple[Sample, Sample]]) -> None:
    for good, bad in pairs.values():
        assert np.array_equal(good.rgb[~bad.mask], bad.rgb[~bad.mask]), bad.name
        assert np.array_equal(good.xyz[~bad.mask], bad.xyz[~bad.mask], equal_nan=True), bad.name
        assert not equal(good, bad), bad.name


def test_mask_is_on_the_part_and_neither_tiny_nor_huge(pairs: dict[tuple[str, str], tuple[Sample, Sample]]) -> None:
    for good, bad in pairs.values():
        part = height_over_table(good.xyz) > 0.002
        known = np.isfinite(good.xyz[..., 2])
        assert 60 * (SIZE / 256) ** 2 <= bad.mask.sum() <= 0.5 * part.sum(), bad.name
        assert (bad.mask & known & ~part).sum() <= 0.05 * bad.mask.sum(), bad.name


def test_every_pixel_of_the_mask_was_altered(pairs: dict[tuple[str, str], tuple[Sample, Sample]]) -> None:
    for good, bad in pairs.values():
        colour = np.abs(good.rgb.astype(int) - bad.rgb).max(axis=-1) > 8  # 12 before rounding, hardly clipped
        depth = np.abs(good.xyz[..., 2] - bad.xyz[..., 2]) > 3e-4
        dropped = np.isnan(good.xyz[..., 2]) != np.isnan(bad.xyz[..., 2])
        assert (colour | depth | dropped)[bad.mask].mean() > 0.9, bad.name


def test_geometry_defects_move_the_surface_and_stains_do_not(
    pairs: dict[tuple[str, str], tuple[Sample, Sample]],
) -> None:
    for (_, defect), (good, bad) in pairs.items():
        raised = (good.xyz[..., 2] - bad.xyz[..., 2])[bad.mask]  # towards the camera is up
        if defect in COLOUR_ONLY:
            assert np.array_equal(good.xyz, bad.xyz, equal_nan=True), bad.name
        elif defect in {"bump", "contamination"}:
            assert np.nanmax(raised) > 5e-4, bad.name
            assert np.nanmean(raised) > 0, bad.name
        else:
            assert np.nanmin(raised) < -5e-4, bad.name
            assert np.nanmean(raised) < 0, bad.name


def test_labels_and_names(pairs: dict[tuple[str, str], tuple[Sample, Sample]]) -> None:
    for (part, defect), (good, bad) in pairs.items():
        assert (good.label, good.defect, good.name) == (0, "good", f"{part}/good/7")
        assert (bad.label, bad.defect, bad.name) == (1, defect, f"{part}/{defect}/7")
        assert not good.mask.any()


def test_defects_are_drawn_for_every_seed() -> None:
    """A defect that can't be placed is redrawn; no seed may run out of draws."""
    for seed in range(3):
        for part in ("rope", "washer"):  # the narrowest parts
            for defect in DEFECT_TYPES:
                assert render_part(part, seed=seed, defect=defect, size=64).mask.any()


@pytest.mark.parametrize("part", PART_TYPES)
def test_cloud_is_a_pinhole_view_of_a_part_on_a_flat_table(part: str) -> None:
    sample = render_part(part, seed=4, size=128)
    known = np.isfinite(sample.xyz).all(axis=-1)
    assert np.array_equal(known, np.isfinite(sample.xyz).any(axis=-1))
    assert 0.002 < (~known).mean() < 0.06
    column = np.broadcast_to(np.arange(128) - 63.5, (128, 128))[known]
    ratio = (sample.xyz[..., 0] / sample.xyz[..., 2])[known]
    focal = (column @ column) / (column @ ratio)
    np.testing.assert_allclose(ratio * focal, column, atol=1e-3)
    assert 0.35 < np.nanmin(sample.xyz[..., 2]) < np.nanmax(sample.xyz[..., 2]) < 0.65
    height = height_over_table(sample.xyz)
    assert 0.006 < np.nanpercentile(height, 99) < 0.05
    assert np.nanstd(height[:5]) == pytest.approx(1e-4, rel=0.15)  # the promised depth noise


def test_foreground_finds_the_part() -> None:
    sample = render_part("tile", seed=3, size=128)
    assert 0.15 < foreground_mask(sample.xyz).mean() < 0.45


def test_a_dent_shows_in_the_normals() -> None:
    """A dent turns normals inside its mask far more than sensor noise does."""
    good, bad = render_part("tile", seed=3, size=128), render_part("tile", seed=3, defect="dent", size=128)
    fitted = [normals_from_xyz(sample.xyz) for sample in (good, bad)]
    both = fitted[0].valid & fitted[1].valid & bad.mask
    turned = np.degrees(np.arccos(np.clip((fitted[0].normals * fitted[1].normals).sum(-1), -1, 1)))
    assert np.median(turned[both]) > 5


def test_scene_does_not_depend_on_the_resolution() -> None:
    """Textures are bound to metres: a large image, shrunk, is the small one but for noise and antialiasing."""
    small, large = (render_part("cookie", seed=9, size=size).rgb.astype(float) for size in (64, 128))
    shrunk = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    other = render_part("cookie", seed=10, size=64).rgb.astype(float)
    assert np.abs(shrunk - small).mean() < 4 < np.abs(other - small).mean()


def test_product_changes_the_design() -> None:
    first, second = (render_part("foam", seed=0, size=64, product=product).rgb for product in (0, 1))
    centre = slice(24, 40)
    assert np.abs(first[centre, centre].mean((0, 1)) - second[centre, centre].mean((0, 1))).max() > 4


def test_layout_is_the_readers(written: Path) -> None:
    assert sorted(list_categories(written)) == ["rope", "tile"]
    test = MVTec3D(written, "tile", "test")
    assert len(MVTec3D(written, "tile", "train")) == 3
    assert len(MVTec3D(written, "tile", "validation")) == 1
    assert len(test) == 2 + len(DEFECT_TYPES)
    assert set(test.defects) == {"good", *DEFECT_TYPES}
    for index in range(len(test)):
        sample = test[index]
        assert sample.mask.any() == (sample.label == 1)
        assert sample.rgb.shape == (SIZE, SIZE, 3)


def test_files_pair_by_stem_and_good_masks_are_empty(written: Path) -> None:
    for split in ("train", "validation", "test"):
        for kind in (written / "rope" / split).iterdir():
            stems = {path.stem for path in (kind / "rgb").iterdir()}
            assert stems == {path.stem for path in (kind / "xyz").iterdir()}
            assert (kind / "gt").exists() == (split == "test")
            for stem in stems if split == "test" else ():
                assert read_mask(kind / "gt" / f"{stem}.png").any() == (kind.name != "good")
    assert read_rgb(written / "rope/train/good/rgb/000.png").dtype == np.uint8
    assert np.isnan(read_xyz(written / "rope/train/good/xyz/000.tiff")).any()


def test_same_seed_same_bytes_and_counts_only_add(written: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, parts=("tile",), train=5, validation=1, test_good=3, test_per_defect=1, seed=5, size=SIZE)
    few, many = digests(written / "tile"), digests(tmp_path / "tile")
    assert few.items() < many.items()


def test_no_sample_occurs_twice(written: Path) -> None:
    clouds = [digest for name, digest in digests(written).items() if name.endswith(".tiff")]
    assert len(set(clouds)) == len(clouds) == 2 * (3 + 1 + 2 + len(DEFECT_TYPES))


def test_another_seed_gives_another_dataset(written: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, parts=("tile",), train=1, validation=0, test_good=0, test_per_defect=0, seed=6, size=SIZE)
    name = "tile/train/good/rgb/000.png"
    assert (written / name).read_bytes() != (tmp_path / name).read_bytes()


def test_all_parts_of_a_dataset_are_one_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, object]] = []

    def spy(part: str, *, seed: int, defect: str | None, size: int, product: int) -> Sample:
        calls.append((seed, product))
        return render_part(part, seed=seed, defect=defect, size=size, product=product)

    monkeypatch.setattr("protoad.data.synthetic.render_part", spy)
    write_dataset(tmp_path, parts=("tile",), train=2, validation=1, test_good=1, test_per_defect=1, seed=8, size=64)
    seeds, products = zip(*calls, strict=True)
    assert set(products) == {8}
    assert len(set(seeds)) == len(seeds) == 4 + len(DEFECT_TYPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": "bagel"}, r"part: 'bagel' is unknown, expected one of cookie, .*rope"),
        ({"defect": "crack"}, r"defect: 'crack' is unknown, expected one of bump, .*contamination"),
        ({"defect": "good"}, r"defect: 'good' is unknown"),
        ({"seed": -1}, r"seed: expected a whole number, 0 or more, got -1"),
        ({"seed": 0.5}, r"seed: expected a whole number"),
        ({"size": 16}, r"size: expected a whole number, 64 or more, got 16"),
        ({"product": -2}, r"product: expected"),
    ],
)
def test_bad_arguments_of_render_part(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_part(**{"part": "cookie", "seed": 0, "size": 64, **arguments})  # type: ignore[arg-type]


def test_bad_arguments_of_write_dataset_write_nothing(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part: 'bagel' is unknown"):
        write_dataset(tmp_path, parts=("cookie", "bagel"), size=64)
    with pytest.raises(ValueError, match="train: expected a whole number, 0 or more, got -1"):
        write_dataset(tmp_path, train=-1, size=64)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"tile: exists and isn't empty"):
        write_dataset(written, parts=("tile",), size=64)
