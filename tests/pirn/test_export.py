"""What pirn export writes, held against the detector it came from; and the script that runs it without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pirn import PIRNConfig, PIRNDetector
from pirn.cli import main
from pirn.export import DETAILS, DeployedDetector, export_detector
from torch import Tensor

from protoad.data import MVTec3D, Prepared, Sample, find_foreground, lose_depth, prepare, render_part, write_dataset
from protoad.detection import Prediction
from protoad.encoders import FeatureCache, filter_bank
from protoad.report import read_jsonl

runtime: Any = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
pytest.importorskip("onnxscript", reason="needs the onnx extra")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "onnx_inspect.py"
TINY = {"image_size": 96, "epochs": 1, "num_prototypes": 4, "num_layers": 1, "n_iters": 3}
SCORE = 1e-4  # absolute; a score counts in deviations of a good surface


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, parts=("cookie",), train=3, validation=4, test_good=2, test_per_defect=1, seed=0, size=120)
    return root


@pytest.fixture(scope="module", params=["rgb", pytest.param("both", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a filter bank; the normals of frames take a minute to export."""
    out = tmp_path_factory.mktemp("trained")
    where = ["--root", str(root)]
    flags = [text for name, value in TINY.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", *where, "--category", "cookie", *flags, "--modality", request.param, "--out", str(out)]) == 0
    assert main(["calibrate", "--checkpoint", str(out), *where, "--false-reject-rate", "0.2"]) == 0
    return out


@pytest.fixture(scope="module")
def before(trained: Path, root: Path) -> Prediction:
    """Of the detector before it was exported."""
    pirn = PIRNDetector.load(trained / "cookie")
    return _predict(pirn, _prepared(pirn, _samples(root, 3)))


@pytest.fixture(scope="module")
def exported(trained: Path, before: Prediction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From frames."""
    path = tmp_path_factory.mktemp("exported") / "cookie.onnx"
    filter_bank._matrix.cache_clear()  # what is kept across calls must not be kept from within an export
    assert main(["export", "--checkpoint", str(trained), "--out", str(path)]) == 0
    return path


def _samples(root: Path, count: int) -> list[Sample]:
    test = MVTec3D(root, "cookie", "test")
    return [test[index] for index in range(count)]


def _prepared(pirn: PIRNDetector, samples: list[Sample]) -> list[Prepared]:
    return [prepare(sample, **asdict(pirn.config.preparation(pirn.category))) for sample in samples]


def _predict(pirn: PIRNDetector, parts: list[Prepared]) -> Prediction:
    pirn.extractor.cache = FeatureCache()
    return pirn.detector(pirn.extractor(parts))


def _frames(samples: list[Sample], *, foreground: bool = True) -> dict[str, np.ndarray]:
    masks = [find_foreground(s.xyz).mask if foreground else np.ones(s.mask.shape, dtype=bool) for s in samples]
    return {
        "rgb": np.stack([s.rgb for s in samples]),
        "xyz": np.stack([s.xyz for s in samples]),
        "foreground": np.stack(masks),
    }


def _inputs(path: Path) -> dict[str, list[Any]]:
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return {one.name: one.shape for one in session.get_inputs()}


def _run(path: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    needed = {one.name: given[one.name] for one in session.get_inputs()}
    return dict(zip((one.name for one in session.get_outputs()), session.run(None, needed), strict=True))


def _assert_equal(found: Prediction, expected: Prediction) -> None:
    torch.testing.assert_close(found._asdict(), expected._asdict(), rtol=0, atol=0)


def _assert_same(found: dict[str, Any], expected: Prediction) -> None:
    assert found.keys() - {"depth_lost"} == {"score", *(f"map_{name}" for name in expected.maps)}
    np.testing.assert_allclose(found["score"], expected.score, rtol=0, atol=SCORE)
    for name, heatmap in expected.maps.items():
        np.testing.assert_allclose(found[f"map_{name}"], heatmap, rtol=0, atol=SCORE)


def test_an_export_changes_nothing(before: Prediction, exported: Path, trained: Path, root: Path) -> None:
    assert exported.is_file()
    pirn = PIRNDetector.load(trained / "cookie")
    _assert_equal(_predict(pirn, _prepared(pirn, _samples(root, 3))), before)


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_from_frames_equals_the_detector(exported: Path, trained: Path, root: Path, count: int) -> None:
    pirn, samples = PIRNDetector.load(trained / "cookie"), _samples(root, count)
    expected = _predict(pirn, _prepared(pirn, samples))
    assert len(set(expected.score.tolist())) == count
    _assert_same(_run(exported, _frames(samples)), expected)


def test_onnx_takes_frames_of_any_shape_and_any_foreground(exported: Path, trained: Path, root: Path) -> None:
    pirn = PIRNDetector.load(trained / "cookie")
    (whole,) = _samples(root, 1)
    cut = Sample(whole.rgb[:91], whole.xyz[:91], whole.mask[:91], 0, "good", "cut")
    for sample, foreground in ((cut, True), (whole, False)):
        parts = [prepare(sample, **asdict(pirn.config.preparation("cookie")) | {"foreground": foreground})]
        if "xyz" not in _inputs(exported):  # it knows the foreground it is given, and nothing of holes
            parts = [part._replace(valid=torch.ones_like(part.valid)) for part in parts]
        _assert_same(_run(exported, _frames([sample], foreground=foreground)), _predict(pirn, parts))


def test_an_invalid_point_may_be_written_in_three_ways(exported: Path, root: Path) -> None:
    if "xyz" not in _inputs(exported):
        pytest.skip("takes no points")
    frames = _frames(_samples(root, 1))
    frames["xyz"][0, 40:44, 40:60] = np.nan
    expected = _run(exported, frames)
    for value in (0, np.inf):
        frames["xyz"][0, 40:44, 40:60] = value
        np.testing.assert_array_equal(_run(exported, frames)["map_fused"], expected["map_fused"])


def test_the_file_says_all_that_is_needed_to_judge_a_part(exported: Path, trained: Path) -> None:
    pirn = PIRNDetector.load(trained / "cookie")
    session = runtime.InferenceSession(exported.read_bytes(), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert (said["category"], said["inputs"], said["unit"], said["image_size"]) == ("cookie", "frames", "1.0", "96")
    calibrations, known = json.loads(said["calibrations"]), pirn.calibrations["+".join(pirn.config.modalities)]
    assert calibrations.keys() == ({"0.0"} if "normals" in pirn.config.modalities else {"0.0", "1.0"})
    calibration = calibrations["0.0"]
    assert tuple(calibration["scores"]) == known.scores
    assert (calibration["threshold"], calibration["false_reject_rate"]) == (known.threshold, 0.2)
    limits = json.loads(said["heatmap_range"])
    assert {name: tuple(pair) for name, pair in limits.items()} == {n: pirn.heatmap_range(n) for n in limits}
    assert limits.keys() == {"fused", *pirn.config.modalities}
    data = (trained / "cookie" / "checkpoint.safetensors").read_bytes()
    assert said["checkpoint_sha256"] == hashlib.sha256(data).hexdigest()
    assert PIRNConfig.from_dict(json.loads(said["config"])) == pirn.config
    free = ["b", "y", "x"]
    names = {"rgb": "rgb", "normals": "xyz"}
    expected = {names[m]: [*free, 3] for m in pirn.config.modalities} | {"foreground": free}
    assert _inputs(exported) == expected


CASES = {
    "ViT, normals": {"encoder": "timm:vit_tiny_patch16_224,weights=random,depth=3", "modality": "normals"},
    "CNN, rgb": {"encoder": "timm:resnet10t,weights=random", "modality": "rgb", "foreground": False},
}


@pytest.mark.parametrize(("case", "suffix"), [("ViT, normals", ".onnx"), ("CNN, rgb", ".onnx"), ("CNN, rgb", ".pt2")])
def test_prepared_inputs_equal_the_detector(case: str, suffix: str, root: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs the timm extra")
    pirn = PIRNDetector(PIRNConfig(**{**TINY, **CASES[case]}), category="cookie")
    parts = _prepared(pirn, _samples(root, 3))
    pirn.fit(parts, ["a", "b", "c"])
    pirn.detector.eval()
    expected = _predict(pirn, parts)
    path = tmp_path / f"model{suffix}"
    export_detector(pirn, pirn.save(tmp_path), path, inputs="prepared")
    _assert_equal(_predict(pirn, parts), expected)
    assert all(parameter.requires_grad for parameter in pirn.model.parameters())
    run = _reader(path)
    for count in (1, 3):
        given = {m: torch.stack([getattr(part, m) for part in parts[:count]]) for m in parts[0]._fields[:5]}
        _assert_same(run(given), Prediction(expected.score[:count], {m: h[:count] for m, h in expected.maps.items()}))


@pytest.mark.parametrize("fills", [False, True])
def test_a_part_with_holes_is_judged_as_by_the_detector(fills: bool, root: Path) -> None:
    pirn = PIRNDetector(PIRNConfig(**TINY, fill_holes=fills), category="cookie")
    samples = _samples(root, 3)
    pirn.fit(_prepared(pirn, samples), ["a", "b", "c"])
    pirn.detector.eval()
    module = DeployedDetector(pirn, "prepared")
    worse = [lose_depth(samples[0], 0.4, "specks", seed=0), lose_depth(samples[0], 0.4, "blobs", seed=0)]
    parts = _prepared(pirn, [samples[0], *worse])
    expected, lost = _predict(pirn, parts), pirn.extractor(parts).lost
    given = [torch.stack([getattr(part, name) for part in parts]) for name in module.names]
    found = dict(zip(module.outputs, module(*given), strict=True))
    _assert_same(found, expected)
    np.testing.assert_allclose(found["depth_lost"], lost)
    assert lost[0] == 0
    assert (lost[1:] > 0.3).all()


def _reader(path: Path) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    """What runs a file on the inputs it needs."""
    if path.suffix == ".onnx":
        return lambda given: _run(path, {name: one.numpy() for name, one in given.items()})
    files = {DETAILS: ""}
    module = torch.export.load(path, extra_files=files).module()
    said = json.loads(files[DETAILS])
    assert (said["inputs"], said["modalities"], said["plane_distance"]) == ("prepared", ["rgb"], None)
    return lambda given: dict(zip(["score", "map_fused", "map_rgb"], module(given["rgb"]), strict=True))


@pytest.mark.parametrize("exporting", [False, True])
def test_preparing_within_the_graph_is_that_of_prepare(
    exporting: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pirn = PIRNDetector(PIRNConfig(**TINY), category="cookie")
    pirn.fit(_prepared(pirn, _samples(root, 3)), ["a", "b", "c"])
    pirn.detector.eval()
    (whole,) = _samples(root, 1)
    wide = Sample(whole.rgb[7:], whole.xyz[7:], whole.mask[7:], 0, "good", "wide")
    tall = Sample(whole.rgb[:, :83], whole.xyz[:, :83], whole.mask[:, :83], 0, "good", "tall")
    for sample in (whole, wide, tall):
        expected = _predict(pirn, _prepared(pirn, [sample]))
        with monkeypatch.context() as patch:
            patch.setattr("torch.compiler.is_exporting", lambda: exporting)  # the plain operators, without an export
            module = DeployedDetector(pirn)
            found = module(*(torch.from_numpy(one) for one in _frames([sample]).values()))
        _assert_same(dict(zip(module.outputs, found, strict=True)), expected)


WITHOUT = """
import runpy, sys
for name in ("torch", "protoad", "pirn", "scipy", "tifffile", "PIL"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", WITHOUT, str(SCRIPT), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def test_the_script_agrees_with_detect(exported: Path, trained: Path, root: Path, tmp_path: Path) -> None:
    folder = root / "cookie" / "test" / "good"
    rgb, xyz = str(folder / "rgb" / "000.png"), str(folder / "xyz" / "000.tiff")
    argv = ["detect", "--checkpoint", str(trained), "--rgb", rgb, "--xyz", xyz, "--out", str(tmp_path)]
    assert main(argv) == 0
    (row,) = read_jsonl(tmp_path / "scores.jsonl")
    run = _inspect(str(exported), "--rgb", rgb, "--xyz", xyz, "--out", str(tmp_path / "overlay.png"))
    assert (run.returncode, run.stderr) == (0, "")
    said = run.stdout.replace(",", "").split()
    assert float(said[1]) == pytest.approx(row["score"], abs=SCORE)
    assert said[2:] == ["p-value", f"{row['p_value']:.3g}", "REJECT" if row["reject"] else "accept"]
    import cv2

    assert cv2.imread(str(tmp_path / "overlay.png")).shape == (120, 120, 3)


def test_the_script_says_what_is_wrong_in_one_sentence(exported: Path, root: Path) -> None:
    rgb = str(root / "cookie" / "test" / "good" / "rgb" / "000.png")
    run = _inspect(str(exported), "--rgb", rgb, "--xyz", rgb)
    assert run.returncode == 2
    assert run.stderr == f"onnx_inspect: {rgb}: expected a TIFF file with three float32 channels, x, y, z\n"


def _scenes() -> dict[str, tuple[np.ndarray, str]]:
    """Clouds for every way through the search for the foreground, and what is said of them."""
    import prepare as benchmark  # of benchmarks/

    made = benchmark.scene(160)
    v, u = np.mgrid[:160, :160] / 160 - 0.5
    flat = np.stack([0.2 * u, 0.2 * v, np.full_like(u, 0.5)], axis=-1).astype(np.float32)
    floor, rim, behind, noise = made.xyz.copy(), made.xyz.copy(), flat.copy(), made.xyz.copy()
    floor[:30] *= 1.2
    for side in (np.s_[:3], np.s_[-3:], np.s_[:, :3]):
        rim[side] *= 0.95
    behind[40:80, 40:80] *= 1.1
    specks = made.xyz.copy()
    specks[120:122, 20:22] *= 0.95  # too small, and large enough
    specks[140:143, 20:24] *= 0.95
    noise[:] = np.random.default_rng(0).normal(size=noise.shape)
    scenes = {
        "within 5 mm of a plane.": specks,
        "The floor behind it went too.": floor,
        "The rim around went too.": rim,
        "off the border's plane lies behind it.": behind,
        "off the border's plane.": flat,
        "no plane holds most of the frame's border.": noise,
        "there is no valid point.": np.zeros_like(made.xyz),
    }
    parts = {name: render_part(name, seed=1, size=120).xyz for name in ("washer", "rope", "tile")}
    return {reason: (xyz, reason) for reason, xyz in scenes.items()} | {n: (xyz, "") for n, xyz in parts.items()}


def test_the_script_finds_the_same_foreground() -> None:
    import onnx_inspect

    for name, (xyz, reason) in _scenes().items():
        for distance in (0.002, 0.005):
            expected = find_foreground(xyz, distance=distance)
            np.testing.assert_array_equal(onnx_inspect.find_foreground(xyz, distance), expected.mask, err_msg=name)
        assert expected.reason.endswith(reason)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pkl", "expected a file name that ends in .onnx or .pt2"),
        ("there.onnx", "is there already; delete it, or choose another --out"),
        ("there.onnx/model.onnx", "cannot be written; choose another folder"),
        ("missing.onnx", "onnxscript is needed here but not installed; run: pip install 'protoad[onnx]'"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.onnx").touch()
    if name == "missing.onnx":
        monkeypatch.setattr("importlib.util.find_spec", lambda package: None if package == "onnxscript" else package)
    monkeypatch.setattr(PIRNDetector, "load", lambda *_, **__: pytest.fail("too late"))
    assert main(["export", "--checkpoint", str(tmp_path), "--out", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_the_page_shows_what_was_measured() -> None:
    import export as benchmark  # of benchmarks/

    assert benchmark.table(json.loads(benchmark.RESULTS.read_text())) in benchmark.PAGE.read_text()
