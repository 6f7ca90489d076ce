from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protoad.errors import DataError, ShapeError
from protoad.viz import GridRow, heatmap_overlay, sample_grid, with_boxes, with_color_bar

cv2 = pytest.importorskip("cv2")

SIZE = 200  # large enough for a grid to show images unmagnified
CYAN = (0, 255, 255)


def inferno(level: int) -> np.ndarray:
    return cv2.applyColorMap(np.array([[level]], np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1]


def grid_row(*, label: str = "part", peak: float = 1.0, size: int = SIZE) -> GridRow:
    rng = np.random.default_rng(0)
    scores = np.zeros((size, size), dtype=np.float32)
    scores[size // 4 : size // 2, size // 4 : size // 2] = peak
    picture = rng.integers(40, 60, (size, size, 3), dtype=np.uint8)
    return GridRow(label, picture, picture + 100, scores / 2, scores / 4, scores, scores > 0)


def has_color(image: np.ndarray, color: object) -> bool:
    return bool((image == np.asarray(color)).all(axis=-1).any())


def ink_touches_border(image: np.ndarray) -> bool:
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return bool((edge < 255).any())


def test_overlay_mixes_grey_picture_and_colours() -> None:
    rgb = np.full((2, 3, 3), 0, dtype=np.uint8)
    rgb[0, 0] = (255, 0, 0)
    heatmap = np.array([[0.0, 0.5, 1.0], [-3.0, 7.0, 0.25]])
    mixed = heatmap_overlay(rgb, heatmap, vmax=1.0, alpha=1.0)
    for (y, x), level in {(0, 0): 0, (0, 1): 128, (0, 2): 255, (1, 0): 0, (1, 1): 255, (1, 2): 64}.items():
        assert np.array_equal(mixed[y, x], inferno(level))
    grey = heatmap_overlay(rgb, heatmap, vmax=1.0, alpha=0.0)
    assert (grey[0, 0] == 76).all()
    assert (grey[1] == 0).all()
    half = heatmap_overlay(rgb, heatmap, vmax=1.0)
    assert np.abs(half.astype(float) - (mixed.astype(float) + grey) / 2).max() <= 1
    assert half.dtype == np.uint8


def test_overlay_scale_is_global() -> None:
    rgb = np.zeros((4, 4, 3), dtype=np.uint8)
    weak, strong = np.full((4, 4), 0.2), np.full((4, 4), 0.2)
    strong[3, 3] = 50.0
    first, second = (heatmap_overlay(rgb, scores, vmax=1.0) for scores in (weak, strong))
    assert np.array_equal(first[:3], second[:3])


def test_overlay_of_float32_at_large_offsets() -> None:
    rgb = np.zeros((1, 2, 3), dtype=np.uint8)
    mixed = heatmap_overlay(rgb, np.array([[1000.0, 1001.0]], np.float32), vmin=1000.0, vmax=1001.0, alpha=1.0)
    assert np.array_equal(mixed[0], [inferno(0), inferno(255)])


def test_overlay_refuses_bad_input() -> None:
    rgb, scores = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5))
    with pytest.raises(ShapeError, match=r"heatmap.*\(4, 5\).*\(5, 4\)"):
        heatmap_overlay(rgb, scores.T, vmax=1)
    with pytest.raises(ShapeError, match=r"rgb.*\(y x 3\)"):
        heatmap_overlay(rgb[..., 0], scores, vmax=1)
    with pytest.raises(DataError, match="uint8"):
        heatmap_overlay(rgb.astype(float), scores, vmax=1)
    with pytest.raises(DataError, match="finite"):
        heatmap_overlay(rgb, scores * np.nan, vmax=1)
    for vmax in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="vmax"):
            heatmap_overlay(rgb, scores, vmax=vmax)
    with pytest.raises(ValueError, match="alpha"):
        heatmap_overlay(rgb, scores, vmax=1, alpha=1.5)


@pytest.mark.parametrize("height", [40, 224, 800])
@pytest.mark.parametrize("limits", [(0.0, 1.0), (-3.5, 1234567.0), (0.1, 0.1004)])
def test_color_bar_is_complete_and_keeps_the_image(height: int, limits: tuple[float, float]) -> None:
    image = np.full((height, 50, 3), 90, dtype=np.uint8)
    barred = with_color_bar(image, vmin=limits[0], vmax=limits[1], label="a score whose name is too long")
    assert np.array_equal(barred[:height, :50], image)
    assert barred.shape[0] == max(height, 160)
    panel = barred[:, 51:]
    assert has_color(panel, inferno(0))
    assert has_color(panel, inferno(255))
    assert not ink_touches_border(panel[:, 1:])  # nothing is cut


def test_color_bar_puts_numbers_at_their_scores() -> None:
    """Ticks 0, 0.5 .. 2 on a bar from 0 to 2.4, brightest on top."""
    barred = with_color_bar(np.zeros((300, 10, 3), np.uint8), vmin=0.0, vmax=2.4)
    sums = barred.astype(int).sum(axis=2)
    bar = sums[:, 10 + 12 + 5]
    rows = np.flatnonzero(bar < 3 * 255)
    assert bar[rows[0]] > bar[rows[-1]]
    ticks = np.flatnonzero(sums[:, 10 + 12 + 18 + 2] == 3 * 25)
    expected = rows[-1] - np.array([2, 1.5, 1, 0.5, 0]) / 2.4 * (rows[-1] - rows[0])
    assert len(ticks) == 5
    assert np.abs(ticks - expected).max() <= 0.5


def test_grid_has_a_cell_per_row_and_column() -> None:
    grid = sample_grid([grid_row(label="good"), grid_row(label="bump\nscore 0.81")])
    assert grid.dtype == np.uint8
    assert grid.shape[0] > 2 * SIZE
    assert grid.shape[1] > 6 * SIZE
    assert not ink_touches_border(grid)
    row = grid_row()
    picture = row.rgb[0]  # first line of pixels: must stand in the grid once per row
    windows = np.lib.stride_tricks.sliding_window_view(grid[..., 0], SIZE, axis=1)
    assert (windows == picture[:, 0]).all(axis=2).sum() == 2


def test_grid_outlines_the_truth_on_the_fused_map_only() -> None:
    row = grid_row()
    assert has_color(sample_grid([row]), CYAN)
    assert not has_color(sample_grid([row], columns=["rgb", "normals", "rgb_map", "normals_map", "mask"]), CYAN)
    assert not has_color(sample_grid([replace(row, mask=None)]), CYAN)
    fused = sample_grid([row], columns=["fused_map"])
    top_left = np.argwhere((fused == inferno(0)).all(axis=-1)).min(axis=0)
    defect = fused[top_left[0] : top_left[0] + SIZE, top_left[1] : top_left[1] + SIZE][row.mask]
    assert (defect == inferno(255)).all()  # the outline covers no score of the defect


def test_the_outline_stands_out_from_the_highest_scores() -> None:
    bright = replace(grid_row(), fused_map=np.ones((SIZE, SIZE)))
    grid = sample_grid([bright], columns=["fused_map"], limits={"fused_map": (0.0, 1.0)})
    cyan = (grid == CYAN).all(axis=-1)
    around = cv2.dilate(cyan.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~cyan
    outer = around & (grid != inferno(255)).any(axis=-1)
    assert (grid[outer] == 0).all()
    assert outer.sum() > cyan.sum() / 2


def test_maps_of_a_column_share_one_scale() -> None:
    grid = sample_grid([grid_row(peak=1.0), grid_row(peak=0.5)], columns=["rgb_map"])
    half = len(grid) // 2
    assert has_color(grid[:half], inferno(255))
    assert has_color(grid[half : half + SIZE // 2], inferno(128))
    only_good = sample_grid([grid_row(peak=0.5)], columns=["fused_map"], limits={"fused_map": (0.0, 1.0)})
    assert has_color(only_good, inferno(128))


def test_grid_without_a_modality_or_with_constant_maps() -> None:
    row = replace(grid_row(peak=0.0), normals=None, normals_map=None)
    assert sample_grid([row]).shape == sample_grid([grid_row()]).shape


def test_small_images_are_magnified_and_titles_fit() -> None:
    heading = "a heading that is far too long for its column"
    grid = sample_grid([grid_row(size=30)], columns=["rgb"], titles={"rgb": heading})
    assert 200 <= grid.shape[1] <= 300
    assert not ink_touches_border(grid)
    assert (grid[:40] < 128).any()


def test_further_detectors_have_columns_of_their_own() -> None:
    row = grid_row()
    others = {"bank": row.fused_map * 4, "Gaussian": row.fused_map * 0}
    rows = [replace(row, others=others), replace(grid_row(label="next"), others={"bank": row.fused_map * 2})]
    columns = ["rgb", "fused_map", "bank", "Gaussian", "mask"]
    grid = sample_grid(rows, columns=columns, titles={"fused_map": "PIRN"})
    assert grid.shape[1] > 5 * SIZE
    of_bank = sample_grid(rows, columns=["bank"])
    half = len(of_bank) // 2
    assert has_color(of_bank[:half], inferno(255))
    assert has_color(of_bank[half : half + SIZE // 2], inferno(128))  # one scale for its column
    assert has_color(of_bank, CYAN)  # the truth is outlined as on the fused map
    scaled = sample_grid(rows, columns=["bank"], limits={"bank": (0.0, 8.0)})
    assert has_color(scaled, inferno(128))
    assert not has_color(scaled[:half], inferno(255))
    assert sample_grid(rows, columns=["Gaussian"]).shape == of_bank.shape  # blank where a row has none
    with pytest.raises(ValueError, match=r"bank.*\['forest'\]"):
        sample_grid(rows, columns=["forest"])
    with pytest.raises(ShapeError, match=r"bank of 'part'"):
        sample_grid([replace(row, others={"bank": row.fused_map[:9]})], columns=["bank"])


def test_grid_refuses_bad_input() -> None:
    row = grid_row()
    with pytest.raises(ShapeError, match=r"fused_map of 'part'.*\(200, 200\).*\(100, 200\)"):
        sample_grid([replace(row, fused_map=row.fused_map[:100])])
    with pytest.raises(ShapeError, match="mask of 'part'"):
        sample_grid([replace(row, mask=row.mask[:100])], columns=["fused_map"])
    with pytest.raises(DataError, match="finite"):
        sample_grid([replace(row, rgb_map=row.rgb_map * np.nan)])
    with pytest.raises(DataError, match="rgb: expected uint8"):
        sample_grid([replace(row, rgb=row.rgb / 255)])
    with pytest.raises(ValueError, match="depth"):
        sample_grid([row], columns=["depth"])
    with pytest.raises(ValueError, match="0 rows"):
        sample_grid([])
    with pytest.raises(ValueError, match="vmin below vmax"):
        sample_grid([row], limits={"fused_map": (1.0, 1.0)})


def test_grid_can_be_written(tmp_path: Path) -> None:
    files = pytest.importorskip("protoad.data.files")
    grid = sample_grid([grid_row()])
    files.write_rgb(tmp_path / "grid.png", grid)
    assert np.array_equal(files.read_rgb(tmp_path / "grid.png"), grid)


def test_boxes_lie_just_outside_of_what_they_frame() -> None:
    image = np.full((60, 80, 3), 7, dtype=np.uint8)
    shown = with_boxes(image, [(20, 10, 30.5, 15), (-5, 50, 10, 20)])
    assert (image == 7).all()
    assert (shown[10:25, 20:51] == 7).all()
    for border in (shown[9, 19:52], shown[25, 19:52], shown[9:26, 19], shown[9:26, 51]):
        assert (border == (0, 255, 255)).all()
    assert (shown[8] == 7).all()
    with pytest.raises(DataError, match="expected uint8"):
        with_boxes(image.astype(float), [])
