"""The comparisons: what is measured, that it is measured once, and what the tables make of it."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pirn.cli import main
from pirn.config import PIRNConfig
from pirn.experiment import evaluate, open_test, train_category
from pirn.studies import STUDIES, measuring, run_study
from pirn.studies.comparing import compare
from pirn.studies.comparisons import COMPARISONS, Comparison, Line
from pirn.studies.printed import Printed, printed
from pirn.studies.request import Piece, Request, settings_of
from pirn.studies.tables import Cell, Table, markdown
from safetensors.torch import save_file

from protoad.encoders.timm_weights import _import_timm
from protoad.errors import ConfigError, DataError, EncoderError

SMALL = PIRNConfig(image_size=64, epochs=1, num_prototypes=4)
TWO = Comparison(
    "Which?",
    (Line("ours", {}), Line("mean", {"aggregation": "mean"}), Line("gone", {"encoder": "timm:vit_tiny_patch16_224"})),
    "ours",
    shots=(3,),
)


def _request(out: Path, cookies: Path, **more: object) -> Request:
    return Request(out, seeds=(0,), root=cookies, base=SMALL, jobs=1, **more)  # type: ignore[arg-type]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(measuring, "_checked", {})


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_comparison_can_be_asked(name: str) -> None:
    comparison = COMPARISONS[name]
    labels = [line.label for line in comparison.lines]
    assert comparison.reference in labels
    assert len(set(labels)) == len(labels)
    for line in comparison.lines:
        for score in comparison.scores or ("",):
            settings_of(replace(PIRNConfig(), **comparison.settings(line, score)))
            settings_of(replace(PIRNConfig().faithful(), **comparison.settings(line, score)))


@pytest.mark.parametrize("name", [n for n, c in COMPARISONS.items() if c.table and not c.by_category])
def test_what_the_paper_calls_a_line_is_in_its_table(name: str) -> None:
    methods = {p.method for p in printed(COMPARISONS[name].table)}
    named = {line.printed for line in COMPARISONS[name].lines if line.printed}
    assert named <= methods
    assert named


def test_settings_are_what_differs_from_the_defaults() -> None:
    assert settings_of(PIRNConfig(seed=3, weights="somewhere")) == "default"
    assert settings_of(PIRNConfig(epochs=60, assignment="softmax")) == "assignment=softmax epochs=60"


def test_a_comparison_measures_as_training_and_evaluating_do(
    cookies: Path, tmp_path: Path, monkeypatch, offline
) -> None:
    monkeypatch.setitem(COMPARISONS, "two", TWO)
    compare("two", _request(tmp_path, cookies))
    rows = list(csv.DictReader((tmp_path / "two.csv").read_text().splitlines()))
    assert [(row["line"], "cosine" in row["settings"]) for row in rows] == [
        ("ours", False),
        ("mean", False),
        ("ours", True),
        ("mean", True),
    ]
    for row, settings in zip(rows, ({}, {"aggregation": "mean"}), strict=False):
        config = replace(SMALL, **settings)
        pirn, _ = train_category(config, cookies, "cookie", 3)
        expected = evaluate(pirn, open_test(config, cookies, "cookie"), None)["pirn"]
        for metric, value in expected._asdict().items():
            assert float(row[metric]) == pytest.approx(value, abs=1e-5)
        assert float(row["loss"]) == pytest.approx(pirn.model.history[-1]["loss"], abs=1e-4)
    text = (tmp_path / "two.md").read_text()
    assert "| whitened | gone | weights not available |" in text
    assert "weights not available: vit_tiny_patch16_224: its weights are not in the local cache" in text
    assert "loss" not in text
    with Image.open(tmp_path / "two.png") as figure:
        figure.load()  # whole
        assert figure.width > figure.height > 100


def test_what_differs_in_its_features_does_not_share_them(cookies: Path, tmp_path: Path, monkeypatch) -> None:
    """Masks, modalities and encoders: each line is what it would be alone."""
    bank = {"detector": "nearest_neighbour"}
    changes = ({}, {"foreground": False}, {"modality": "rgb"}, bank, {**bank, "encoder_normals": "fpfh"})
    lines = tuple(Line(str(index), settings) for index, settings in enumerate(changes))
    monkeypatch.setitem(COMPARISONS, "features", replace(TWO, lines=lines, reference="0", scores=("whitened",)))
    compare("features", _request(tmp_path, cookies))
    rows = {row["line"]: row for row in csv.DictReader((tmp_path / "features.csv").read_text().splitlines())}
    for index, settings in enumerate(changes):
        config = replace(SMALL, **settings)
        pirn, _ = train_category(config, cookies, "cookie", 3)
        expected = evaluate(pirn, open_test(config, cookies, "cookie"), None)[config.detector]
        assert float(rows[str(index)]["pixel_auroc"]) == pytest.approx(expected.pixel_auroc, abs=1e-5)
    assert len({row["pixel_auroc"] for row in rows.values()}) == len(changes)


def test_the_papers_numbers_stand_beside_its_own_score_and_shots() -> None:
    line, numbers = Line("a", printed="A"), []
    for shots, value in (("5", 0.1), ("10", 0.2)):
        numbers.append(Printed(1, "MVTec 3D-AD", shots, "A", "mean", {"image_auroc": value}, ""))
    several = Table("parts", Comparison("?", (line,), "a", 1), [], numbers)
    assert several.printed_for(Cell(line, 10, "cosine", [])) == {"image_auroc": 0.2}
    assert several.printed_for(Cell(line, 10, "whitened", [])) == {}
    assert several.printed_for(Cell(line, 7, "cosine", [])) == {}  # the paper has five and ten
    only_all = several._replace(printed=[numbers[0]._replace(shots="all")])
    assert only_all.printed_for(Cell(line, 10, "cosine", [])) == {"image_auroc": 0.1}


def test_the_papers_means_stand_beside_ours_not_those_of_its_first_category() -> None:
    table = Table("parts", COMPARISONS["category"], [], printed(11))
    found = {line.label: table.printed_for(Cell(line, 10, "", [])) for line in table.comparison.lines}
    assert found["PIRN, cosine"] == {"image_auroc": 0.963, "aupro": 0.973}
    assert found["M3DM, own"] == {"image_auroc": 0.945, "aupro": 0.964}
    assert found["PIRN, whitened"] == {}


def test_seeds_that_lack_a_category_do_not_count_in_the_mean() -> None:
    rows = [{"category": c, "seed": s, "aupro": v} for c, s, v in (("x", 0, 0.2), ("y", 0, 0.4), ("x", 1, 0.9))]
    assert Cell(Line("a"), 10, "", rows).over_seeds("aupro") == pytest.approx([0.3])


def test_what_is_measured_is_measured_once(cookies: Path, tmp_path: Path, monkeypatch, offline, capsys) -> None:
    monkeypatch.setitem(COMPARISONS, "two", TWO)
    one = replace(TWO, lines=(*TWO.lines[:1], Line("softmax", {"assignment": "softmax"})), scores=("whitened",))
    monkeypatch.setitem(COMPARISONS, "one", one)
    judge, judged = measuring._Bench.judge, []

    def counted(self: measuring._Bench, config: PIRNConfig) -> object:
        judged.append(settings_of(config))
        if len(judged) == 3:
            raise KeyboardInterrupt
        return judge(self, config)

    monkeypatch.setattr(measuring._Bench, "judge", counted)
    with pytest.raises(KeyboardInterrupt):
        compare("two", _request(tmp_path, cookies))
    compare("two", _request(tmp_path, cookies))
    assert sorted(judged) == sorted([*{*judged}, judged[2]])  # only what was interrupted came twice
    before = len(judged)
    compare("one", _request(tmp_path, cookies))
    assert len(judged) == before + 1
    assert "softmax" in judged[-1]
    assert "pieces done" in capsys.readouterr().out


def test_each_number_of_shots_is_a_line_of_its_own(cookies: Path, tmp_path: Path, monkeypatch) -> None:
    lines = (Line("bank", {"detector": "nearest_neighbour"}),)
    monkeypatch.setitem(COMPARISONS, "bank", replace(TWO, lines=lines, reference="bank", scores=("whitened",)))
    compare("bank", _request(tmp_path, cookies, shots=(2, None)))
    rows = list(csv.DictReader((tmp_path / "bank.csv").read_text().splitlines()))
    assert [row["shots"] for row in rows] == ["2", "all"]
    assert rows[0]["aupro"] != rows[1]["aupro"]
    text = (tmp_path / "bank.md").read_text()
    for row in rows:
        assert f"| {row['shots']} | bank | {float(row['image_auroc']):.3f} |" in text


def test_random_weights_measure_nothing(cookies: Path, tmp_path: Path, monkeypatch) -> None:
    random = Line("random", {"encoder": "timm:vit_tiny_patch16_224,weights=random"})
    monkeypatch.setitem(COMPARISONS, "random", replace(TWO, lines=(TWO.lines[0], random), scores=("whitened",)))
    compare("random", _request(tmp_path, cookies))
    assert "| random | weights not available |" in (tmp_path / "random.md").read_text()
    monkeypatch.setitem(COMPARISONS, "random", replace(TWO, lines=(random,), reference="random", scores=("whitened",)))
    with pytest.raises(EncoderError, match="random weights measure nothing"):
        compare("random", _request(tmp_path, cookies))


def test_a_line_that_fails_does_not_stop_the_others(cookies: Path, tmp_path: Path, monkeypatch, offline) -> None:
    lines = (Line("too many", {"num_prototypes": 100_000}), Line("ours", {}))
    monkeypatch.setitem(COMPARISONS, "two", replace(TWO, lines=lines, scores=("whitened",)))
    with pytest.raises(ConfigError, match="num_prototypes: expected at most"):
        compare("two", _request(tmp_path, cookies))
    (kept,) = csv.DictReader((tmp_path / "measured" / "cookie-3-0.csv").read_text().splitlines())
    assert kept["settings"] == settings_of(SMALL)
    text = (tmp_path / "two.md").read_text()  # written all the same, and says what lacks
    assert "| too many | not measured |" in text
    assert "\nnot measured: num_prototypes: expected at most" in text


def test_a_category_may_be_called_by_a_number(cookies: Path, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "root"
    for name in ("007", "1e5"):
        shutil.copytree(cookies / "cookie", root / name)
    lines = (Line("bank", {"detector": "nearest_neighbour"}),)
    one = replace(TWO, lines=lines, reference="bank", scores=("whitened",))
    monkeypatch.setitem(COMPARISONS, "one", one)
    monkeypatch.setitem(COMPARISONS, "two", replace(one, by_category=True))
    for name in ("one", "two"):
        compare(name, _request(tmp_path / "out", root))
    assert ": 007, 1e5; 3 shots;" in (tmp_path / "out" / "one.md").read_text()
    assert "|  | 007 | 1e5 | mean |" in (tmp_path / "out" / "two.md").read_text()


def test_other_weights_are_measured_anew(cookies: Path, tmp_path: Path, monkeypatch) -> None:
    spec = "timm:resnet10t,levels=1"
    lines = (Line("bank", {"encoder": spec, "detector": "nearest_neighbour"}),)
    monkeypatch.setitem(COMPARISONS, "one", replace(TWO, lines=lines, reference="bank", scores=("cosine",)))
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        weights = tmp_path / str(seed)
        weights.mkdir(exist_ok=True)
        save_file(_import_timm().create_model("resnet10t").state_dict(), weights / "resnet10t.safetensors")
        compare("one", _request(tmp_path / "out", cookies, weights=weights))
        (row,) = csv.DictReader((tmp_path / "out" / "one.csv").read_text().splitlines())
        found.append((row["weights"], row["pixel_auroc"]))
    assert found[0] == found[2] != found[1]
    assert found[0][1] != found[1][1]
    assert len((tmp_path / "out" / "measured" / "cookie-3-0.csv").read_text().splitlines()) == 3


def test_a_cache_says_itself_what_it_is_of(cookies: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setitem(STUDIES, "components", asked.append)
    cache = str(tmp_path / "cache")
    where = ["--dataset", "3d-adam", "--root", str(cookies)]
    assert main(["prepare", *where, "--out", cache, "--size", "64", "--jobs", "1"]) == 0
    assert main(["study", "components", "--root", cache, "--out", str(tmp_path / "out"), "--seeds", "2", "2"]) == 0
    assert asked[0].source.dataset == "3d-adam"
    assert asked[0].seeds == (2,)


def test_numbers_of_two_data_sets_never_meet(cookies: Path, tmp_path: Path, monkeypatch) -> None:
    """Synthetic parts and a data set may both have a category called cookie."""
    assert _request(tmp_path, cookies).claim() == _request(tmp_path, cookies).claim()
    for other in (Request(tmp_path), replace(_request(tmp_path, cookies), root=cookies.parent)):
        with pytest.raises(DataError, match=r"holds measurements of mvtec3d in .*; choose another --out"):
            other.claim()
    monkeypatch.setattr("pirn.studies.request.PIRNConfig", lambda: PIRNConfig(epochs=11))
    with pytest.raises(DataError, match=r"with defaults .*, not mvtec3d in .*; choose another --out"):
        _request(tmp_path, cookies).claim()  # nor those of two defaults: rows say what they change of them
    monkeypatch.undo()
    assert Request(tmp_path, quick=True).claim() != _request(tmp_path, cookies).claim()  # fewer parts, apart


def test_weights_are_found_by_the_name_of_their_model(tmp_path: Path) -> None:
    (tmp_path / "mobilenetv2_100_x.safetensors").touch()
    (tmp_path / "mobilenetv2_100_a.txt").touch()
    request = Request(tmp_path, weights=tmp_path)
    found = request.config({"encoder": "timm:mobilenetv2_100,pad_type=same"}, 0).weights
    assert found == str(tmp_path / "mobilenetv2_100_x.safetensors")
    assert request.config({"encoder": "timm:vit_tiny_patch16_224"}, 0).weights is None
    assert request.config({}, 0).weights is None


def test_synthetic_parts_are_made_once_and_have_no_end(tmp_path: Path) -> None:
    request = Request(tmp_path, quick=True).reduced()
    assert request.seeds == (0,)
    folder = request.folder_of(Piece("cookie", 3, 0))
    written = (folder / "cookie" / "train" / "good" / "rgb" / "000.png").stat().st_mtime_ns
    assert request.folder_of(Piece("cookie", 5, 0)) == folder
    assert (folder / "cookie" / "train" / "good" / "rgb" / "000.png").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="give numbers"):
        request.folder_of(Piece("cookie", None, 0))
    with pytest.raises(ConfigError, match="no synthetic part 'screw'"):
        Request(tmp_path, categories=("screw",)).chosen()


def _cells(values: dict[tuple[str, str, int], float], labels: tuple[str, ...] = ("a", "b")) -> list[Cell]:
    def rows(label: str) -> list[dict]:
        return [
            {"category": c, "seed": s, "image_auroc": v, "pixel_auroc": 0.5, "aupro": v / 2, "f1_max": math.nan}
            for (name, c, s), v in values.items()
            if name == label
        ]

    return [Cell(Line(label, printed=label.upper()), 10, "", rows(label)) for label in labels]


def test_a_table_holds_deviations_over_seeds_and_paired_differences() -> None:
    rng = np.random.default_rng(0)
    values = {(label, c, s): float(rng.random()) for label in "ab" for c in ("x", "y") for s in range(3)}
    comparison = Comparison("?", (Line("a", printed="A"), Line("b", printed="B")), "a", table=2, scores=())
    numbers = [
        Printed(2, "MVTec 3D-AD", "10", "A", "mean", {"image_auroc": 0.9}, ""),
        Printed(2, "MVTec 3D-AD", "10", "C", "mean", {"image_auroc": 0.8}, "beware"),
    ]
    text = markdown("t", Table("parts", comparison, _cells(values), numbers))
    means = {label: [np.mean([values[label, c, s] for c in "xy"]) for s in range(3)] for label in "ab"}
    changes = [values["b", c, s] - values["a", c, s] for c in "xy" for s in range(3)]
    line = next(line for line in text.splitlines() if line.startswith("| b |"))
    assert f"| b | {np.mean(means['b']):.3f} ± {np.std(means['b'], ddof=1):.3f} | 0.500 ± 0.000 |" in line
    assert f"| {np.mean(changes):+.3f} ± {np.std(changes, ddof=1) / 6**0.5:.3f} |" in line
    assert next(line for line in text.splitlines() if line.startswith("| a |")).endswith("| 0.900 |")
    assert next(line for line in text.splitlines() if line.startswith("| C (printed only) |")).endswith("| 0.800 |")
    assert "beware" in text
    assert "seeds 0, 1, 2" in text


def test_a_table_by_category_has_a_block_per_metric_and_the_printed_ones() -> None:
    values = {("a", "x", 0): 0.5, ("a", "y", 0): 0.7, ("b", "x", 0): 0.25, ("b", "y", 0): 0.75}
    comparison = Comparison("?", (Line("a"), Line("b")), "a", by_category=True, scores=())
    numbers = [Printed(11, "MVTec 3D-AD", "all", "M3DM", "Rope", {"aupro": 0.971}, "")]
    lines = markdown("t", Table("parts", comparison, _cells(values), numbers)).splitlines()
    start = lines.index("**I-AUROC**")
    assert lines[start + 2] == "|  | x | y | mean |"
    assert lines[start + 4 : start + 6] == ["| a | 0.500 | 0.700 | 0.600 |", "| b | 0.250 | 0.750 | 0.500 |"]
    start = lines.index("**AUPRO, as printed in the paper's Table 11, MVTec 3D-AD, all shots**")
    assert lines[start + 2 : start + 5 : 2] == ["|  | Rope |", "| M3DM | 0.971 |"]


def test_the_command(tmp_path: Path, capsys, monkeypatch, cookies: Path) -> None:
    asked = []
    monkeypatch.setitem(STUDIES, "components", asked.append)
    argv = ["study", "components", "--out", str(tmp_path), "--shots", "5", "all", "--root", str(cookies)]
    assert main([*argv, "--seeds", "1", "--faithful", "--category", "cookie"]) == 0
    (request,) = asked
    assert request.shots == (5, None)
    assert request.base == PIRNConfig().faithful()
    assert (request.seeds, request.categories, request.root) == ((1,), ("cookie",), cookies)
    assert main(["study", "components", "--out", str(tmp_path), "--dataset", "eyecandies"]) == 2
    assert "--root" in capsys.readouterr().err
    assert main(["study", "components", "--out", str(tmp_path), "--option", "unit=mm"]) == 2
    assert "--root" in capsys.readouterr().err
    for ignored in (["--shots", "5"], ["--faithful"], ["--category", "tile"], ["--encoder", "timm:resnet18"]):
        assert main(["study", "missing", "--out", str(tmp_path), *ignored]) == 2
        assert "draws its own parts" in capsys.readouterr().err
    assert main(["study", "missing", "--out", str(tmp_path), "--jobs", "2"]) == 2
    assert "jobs: study missing works in one process" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "components", "--out", str(tmp_path), "--shots", "few"])


def test_what_changes_no_result_is_left_to_the_study(tmp_path: Path) -> None:
    assert Request(tmp_path, seeds=(3,), quick=True, jobs=2, cache=tmp_path).leaves_it_to_the_study
    assert not Request(tmp_path, shots=(5,)).leaves_it_to_the_study


def test_all_goes_on_after_a_study_that_fails(tmp_path: Path, monkeypatch, capsys) -> None:
    done: list[str] = []

    def failing(request: Request) -> None:
        raise ConfigError("cannot")

    def measuring_fails(names: list[str], request: Request) -> None:
        done.append("measured")
        raise DataError("of one line")

    monkeypatch.setattr("pirn.studies.measure_all", measuring_fails)
    for name in list(STUDIES):
        monkeypatch.setitem(STUDIES, name, failing if name == "layers" else lambda request, n=name: done.append(n))
    with pytest.raises(ConfigError, match="cannot"):
        run_study("all", Request(tmp_path))
    assert done == ["measured", *(name for name in STUDIES if name != "layers")]
    done.clear()
    with pytest.raises(ConfigError, match="cannot"):
        run_study("all", Request(tmp_path, base=PIRNConfig().faithful()))
    assert done == ["measured", *(name for name in COMPARISONS if name != "layers")]
    assert "left out, for they draw their own parts: efficiency, large-anomaly, missing, figures" in (
        capsys.readouterr().out
    )
