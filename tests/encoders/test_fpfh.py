"""FPFH against Open3D, against loops over the definition, and against cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from protoad._lazy import require_open3d
from protoad.data import Prepared, prepare, render_part
from protoad.detection import FeatureExtractor
from protoad.encoders import (
    FeatureCache,
    FilterBankEncoder,
    FPFHEncoder,
    build_encoder,
    looks_at,
    point_feature_histograms,
)
from protoad.errors import DataError, EncoderError, MissingExtraError, ShapeError

PART = prepare(render_part("cookie", seed=0, size=96), 96, points=True)
CAMERA_AXES = torch.tensor([1.0, -1.0, -1.0])[:, None, None]


def _input(part: Prepared) -> torch.Tensor:
    """(6 y x) of the points of a part."""
    seen = part.valid & part.foreground
    normals = torch.where(seen, 2 * part.normals - 1, 0) * CAMERA_AXES
    return torch.cat([torch.where(seen, part.xyz, torch.nan), normals])


def _cloud() -> tuple[np.ndarray, np.ndarray]:
    """Points and normals (n 3) of the part."""
    image = _input(PART)
    cloud = image[:, image.isfinite().all(0)].T.double().numpy()
    return cloud[:, :3], cloud[:, 3:] / np.linalg.norm(cloud[:, 3:], axis=1, keepdims=True)


def _bumps(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points and normals (n 3) at random, within a few centimetres."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(count, 3)) - np.array([0, 0, 2])
    return 0.02 * rng.normal(size=(count, 3)), normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _by_the_definition(points, normals, radius: float, max_neighbors: int) -> np.ndarray:
    """Rusu's formulas, pair by pair, with every vector of the frame written out."""

    def near(i: int) -> list[int]:
        order = sorted(range(len(points)), key=lambda j: math.dist(points[i], points[j]))
        return [j for j in order[:max_neighbors] if j != i and math.dist(points[i], points[j]) < radius]

    def simple(i: int) -> np.ndarray:
        histogram = np.zeros(33)
        for j in near(i):
            step = (points[j] - points[i]) / math.dist(points[i], points[j])
            source, target = (i, j) if abs(normals[i] @ step) >= abs(normals[j] @ step) else (j, i)
            step = step if source == i else -step
            u, other = normals[source], normals[target]
            v = np.cross(step, u)
            v /= math.sqrt(v @ v)
            w = np.cross(u, v)
            for start, share in (
                (0, (math.atan2(w @ other, u @ other) + math.pi) / (2 * math.pi)),
                (11, (v @ other + 1) / 2),
                (22, (u @ step + 1) / 2),
            ):
                histogram[start + min(10, int(11 * share))] += 100 / len(near(i))
        return histogram

    found = np.zeros((len(points), 33))
    for i in range(len(points)):
        around = sum((simple(j) / math.dist(points[i], points[j]) ** 2 for j in near(i)), np.zeros(33))
        for start in (0, 11, 22):
            part = around[start : start + 11]
            found[i, start : start + 11] = 100 * part / part.sum() if part.sum() else 0
        found[i] += simple(i)
    return found


@pytest.mark.parametrize(("radius", "most"), [(0.25, 100), (0.006, 1000), (0.006, 12)])
def test_features_are_those_of_open3d(radius: float, most: int) -> None:
    try:
        open3d = require_open3d()
    except MissingExtraError as error:
        pytest.skip(str(error))
    points, normals = _cloud()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.normals = open3d.utility.Vector3dVector(normals)
    search = open3d.geometry.KDTreeSearchParamHybrid(radius=radius, max_nn=most)
    expected = np.asarray(open3d.pipelines.registration.compute_fpfh_feature(cloud, search).data).T
    found = point_feature_histograms(points, normals, radius=radius, max_neighbors=most)
    # a value on the edge between two bins may be rounded into either
    assert (np.abs(found - expected) < 1e-6).mean() > 0.999
    assert np.abs(found - expected).mean() < 1e-3
    assert len(points) > 1000


@pytest.mark.parametrize(("radius", "most"), [(0.025, 100), (1.0, 8)])
def test_features_are_those_of_the_definition(radius: float, most: int) -> None:
    points, normals = _bumps(30)
    expected = _by_the_definition(points, normals, radius, most)
    found = point_feature_histograms(points, normals, radius=radius, max_neighbors=most)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    sums = found.reshape(30, 3, 11).sum(-1)
    lonely = ~expected.any(1)
    np.testing.assert_allclose(sums[~lonely], 200)
    assert lonely.sum() < 15


def test_a_pair_by_hand() -> None:
    """The second normal leans by 0.7 rad away from the first point: it is the source, theta is 0.7, phi -sin(0.7)."""
    normals = np.array([[0, 0, 1], [math.sin(0.7), 0, math.cos(0.7)]])
    found = point_feature_histograms(np.array([[0.0, 0, 0], [0.01, 0, 0]]), normals, radius=0.1)
    expected = np.zeros(33)
    expected[[6, 11 + 5, 22 + 1]] = 200  # 11 (0.7 + pi) / 2 pi = 6.7; alpha 0; 11 (1 - sin 0.7) / 2 = 1.96
    np.testing.assert_allclose(found, [expected, expected])


def test_a_plane_fills_the_middle_bins() -> None:
    y, x = np.mgrid[:12, :12] * 0.001
    points = np.stack([x, y, 0.5 + 0.3 * x], axis=-1).reshape(-1, 3)
    normal = np.array([0.3, 0, -1]) / math.hypot(0.3, 1)
    found = point_feature_histograms(points, np.tile(normal, (144, 1)), radius=0.004)
    expected = np.zeros(33)
    expected[[5, 16, 27]] = 200
    np.testing.assert_allclose(found, np.tile(expected, (144, 1)), atol=1e-9)


def test_rigid_motion_changes_nothing() -> None:
    points, normals = _bumps(300, seed=3)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    still = point_feature_histograms(points, normals, radius=0.02)
    moved = point_feature_histograms(points @ turn.T + [0.3, -0.1, 0.7], normals @ turn.T, radius=0.02)
    np.testing.assert_allclose(moved, still, rtol=0, atol=1e-6)
    mirrored = point_feature_histograms(points * [-1, 1, 1], normals * [-1, 1, 1], radius=0.02)
    assert np.abs(mirrored - still).max() > 1  # alpha changes its sign: a mirror image is another thing


def test_few_points_lone_ones_and_twins() -> None:
    assert point_feature_histograms(np.zeros((0, 3)), np.zeros((0, 3)), radius=1.0).shape == (0, 33)
    up = np.tile([0.0, 0.0, 1.0], (4, 1))
    assert not point_feature_histograms(np.zeros((1, 3)), up[:1], radius=1.0).any()
    points = np.array([[0.0, 0, 0], [0.01, 0, 0], [0.01, 0, 0], [9.0, 0, 0]])
    found = point_feature_histograms(points, up, radius=0.1)
    assert np.isfinite(found).all()
    assert not found[3].any()
    assert found[:3, [5, 16, 27]].min() == pytest.approx(200)
    stacked = point_feature_histograms(np.array([[0.0, 0, 0], [0, 0, 0.01]]), up[:2], radius=0.1)
    assert stacked[:, [5, 16, 27]].min() == pytest.approx(200)  # a step along the normals spans no frame


def test_tokens_are_means_over_their_cells() -> None:
    image = _input(PART)
    image[:, :, 40:44] = torch.nan
    encoder = FPFHEncoder(radius=0.01, max_neighbors=30, stride=8)
    (tokens,) = encoder(image[None])
    assert tokens.shape == (144, 33)
    assert tokens.dtype == torch.float32
    there = image.isfinite().all(0).numpy() & image[3:].any(0).numpy()
    cloud = image[:, torch.from_numpy(there)].T.double().numpy()
    histograms = np.zeros((96, 96, 33))
    histograms[there] = point_feature_histograms(cloud[:, :3], cloud[:, 3:], radius=0.01, max_neighbors=30)
    empty = 0
    for row in range(12):
        for column in range(12):
            cell = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
            inside = histograms[cell][there[cell]]
            expected = inside.mean(0) if len(inside) else np.zeros(33)
            empty += not len(inside)
            np.testing.assert_allclose(tokens[12 * row + column], expected, rtol=1e-5, atol=1e-4)
    assert 0 < empty < 144
    assert (tokens[tokens.any(1)].sum(1) > 300).all()


def test_each_image_by_itself_and_the_same_again() -> None:
    encoder = FPFHEncoder(stride=12)
    pair = torch.stack([_input(PART), torch.full((6, 96, 96), torch.nan)])
    once, again = encoder(pair), encoder(pair)
    assert torch.equal(once, again)
    assert torch.equal(once[0], encoder(pair[:1])[0])
    assert not once[1].any()
    assert once.shape == (2, 64, 33)


def test_the_extractor_feeds_points_of_the_part_beside_colours() -> None:
    encoders = {"rgb": FilterBankEncoder(), "normals": FPFHEncoder()}
    extractor = FeatureExtractor(encoders, image_size=96, cache=FeatureCache()).fit([PART])
    features = extractor([PART, PART])
    assert {m: t.shape for m, t in features.tokens.items()} == {"rgb": (2, 144, 256), "normals": (2, 144, 33)}
    torch.testing.assert_close(features.tokens["normals"][0], FPFHEncoder()(_input(PART)[None])[0], rtol=0, atol=0)
    whole = FeatureExtractor(encoders, image_size=96, foreground=False)
    assert (whole([PART]).tokens["normals"].any(-1) | ~features.tokens["normals"][:1].any(-1)).all()
    assert whole([PART]).tokens["normals"].any(-1).sum() > features.tokens["normals"][0].any(-1).sum()
    # colours alone need no points
    bare = PART._replace(xyz=None)
    assert torch.equal(extractor([bare], ["rgb"]).tokens["rgb"][0], features.tokens["rgb"][0])
    with pytest.raises(DataError, match=r"fpfh: looks at points, which this part was prepared without; .*points=True"):
        extractor([bare])
    with pytest.raises(DataError, match="one token grid"):
        FeatureExtractor({"rgb": FilterBankEncoder(), "normals": FPFHEncoder(stride=12)}, image_size=96)
    with pytest.raises(DataError, match="fpfh looks at points and sees no colours"):
        FeatureExtractor({"rgb": FPFHEncoder()}, image_size=96)


def test_a_cache_on_disk_keeps_radii_apart(tmp_path) -> None:
    image = _input(PART)[None]
    near, far = FPFHEncoder(radius=0.004), FPFHEncoder(radius=0.01)
    found = FeatureCache(tmp_path).encode(near, image)
    assert torch.equal(FeatureCache(tmp_path).encode(near, image), found)
    assert not torch.equal(FeatureCache(tmp_path).encode(far, image), found)
    others = [FPFHEncoder(), FPFHEncoder(max_neighbors=30), FPFHEncoder(stride=4), near, far]
    assert len({encoder.fingerprint() for encoder in others}) == 5
    assert FPFHEncoder().fingerprint() == build_encoder("fpfh").fingerprint()


def test_build_encoder_reads_its_options() -> None:
    encoder = build_encoder("fpfh,radius=0.01,max_neighbors=40", image_size=224, stride=14)
    assert isinstance(encoder, FPFHEncoder)
    assert (encoder.radius, encoder.max_neighbors, encoder.stride, encoder.dim) == (0.01, 40, 14, 33)
    assert encoder.name == "fpfh,radius=0.01,max_neighbors=40"
    assert build_encoder("fpfh,stride=16", stride=14).stride == 16
    assert build_encoder("filter_bank", stride=14).stride == 14
    assert [looks_at(name) for name in ("fpfh", "fpfh,radius=1", "filter_bank", "timm:x")] == ["points"] * 2 + [
        "image"
    ] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fpfh,radius=0", "radius must be a length above 0 in metres, got 0"),
        ("fpfh,radius=wide", "radius must be a length above 0"),
        ("fpfh,max_neighbors=1", "max_neighbors must be a whole number of 2 or more, got 1"),
        ("fpfh,stride=0", "stride must be a whole number of pixels, 1 or more, got 0"),
        ("fpfh,bins=5", "unknown option bins; there are radius, max_neighbors, stride"),
        ("fpfh,radius", "cannot read 'radius'; write key=value"),
        ("fpfh,stride=13", "221 or 234"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        build_encoder(name)


def test_bad_inputs() -> None:
    with pytest.raises(EncoderError, match="fpfh has no weights to load"):
        build_encoder("fpfh", weights="file.pth")
    with pytest.raises(
        ShapeError, match=r"points: expected floating point \(b 6 y x\), got torch.float32 \(1, 3, 8, 8\)"
    ):
        FPFHEncoder()(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"expected \(n 3\) both, got \(4, 3\) and \(5, 3\)"):
        point_feature_histograms(np.zeros((4, 3)), np.zeros((5, 3)), radius=1.0)
