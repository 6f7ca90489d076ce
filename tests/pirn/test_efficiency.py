"""What detectors cost: counts against ones by hand, memory, the table, and going on after a stop."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pirn.cli import main
from pirn.config import PIRNConfig
from pirn.model import PIRN
from pirn.studies import STUDIES, efficiency
from pirn.studies.efficiency import bench as benches
from pirn.studies.efficiency import report
from pirn.studies.efficiency.bench import Bench, Effort, Seen
from pirn.studies.efficiency.flops import FORMULAS, count_flops, feed_forward_flops, transformer_block_flops
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from protoad.encoders import build_encoder
from protoad.ops import cosine_cost, sinkhorn_from_cost, transport_context, transport_reconstruct

TINY = Effort(shots=2, repeats=2)
SMALL = PIRNConfig(image_size=64, num_prototypes=4)


def test_linear_layers_and_vectors_by_hand() -> None:
    layer = nn.Linear(8, 5).requires_grad_(False)
    assert count_flops(lambda: layer(torch.ones(2, 7, 8))) == 2 * (2 * 7) * 8 * 5
    assert count_flops(lambda: torch.ones(7, 8) @ torch.ones(8)) == 2 * 7 * 8
    for size in (3, 40):  # below and above where torch takes another way
        assert count_flops(lambda size=size: torch.cdist(torch.ones(size, 8), torch.ones(size, 8))) == 2 * size**2 * 8


def test_a_small_transformer_by_hand() -> None:
    encoder = build_encoder("timm:vit_tiny_patch16_224,weights=random", image_size=64)
    n, d = 16 + 1, 192
    linear = 2 * n * d * (3 * d) + 2 * n * d * d + 2 * (2 * n * d * 4 * d)
    attention = 3 * (2 * n * n * 64 + 2 * n * n * 64)  # three heads of 64
    assert transformer_block_flops(n, d) == linear + attention
    assert feed_forward_flops(n, d) == 2 * n * (d * 4 * d + 4 * d * d)
    patches = 2 * 16 * (3 * 16 * 16) * d
    assert count_flops(lambda: encoder(torch.ones(1, 3, 64, 64))) == patches + 10 * (linear + attention)  # blocks 0..9


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_of_a_cpu_is_counted_as_the_products_it_stands_for(heads: int) -> None:
    q, k, v = torch.ones(2, heads, 6, 4), torch.ones(2, heads, 3, 4), torch.ones(2, heads, 3, 4)
    plain = _plain(lambda: (q @ k.mT).softmax(-1) @ v)
    assert count_flops(lambda: scaled_dot_product_attention(q, k, v)) == plain > 0


def _plain(call: Any) -> int:
    """By torch's own formulas alone."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_own_operators_count_as_the_products_they_stand_for() -> None:
    tokens, prototypes, plan = torch.rand(2, 9, 4), torch.rand(2, 3, 4), torch.rand(2, 9, 3)
    assert count_flops(lambda: cosine_cost(tokens, prototypes)) == _plain(lambda: tokens @ prototypes.mT)
    assert count_flops(lambda: cosine_cost(tokens, prototypes[0])) == _plain(lambda: tokens @ prototypes.mT)
    assert count_flops(lambda: transport_reconstruct(plan, prototypes)) == _plain(lambda: plan @ prototypes)
    assert count_flops(lambda: transport_context(plan, tokens)) == _plain(lambda: plan.mT @ tokens)

    def scaling() -> None:
        r = torch.ones(2, 9, 1)
        for _ in range(5):
            v = 1 / (plan.mT @ r)
            r = 1 / (plan @ v)

    assert count_flops(lambda: sinkhorn_from_cost(plan, n_iters=5)) == _plain(scaling)
    with pytest.raises(ValueError, match="fixed number"):
        count_flops(lambda: sinkhorn_from_cost(plan, tol=1e-3))


def test_no_operator_of_protoad_goes_uncounted() -> None:
    names = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if "protoad::" in name
    }
    forward = {name for name in names if not name.endswith("_backward")}
    assert forward == {str(op).removeprefix("protoad.") for op in FORMULAS if str(op).startswith("protoad.")}


@pytest.mark.parametrize("faithful", [True, False])
def test_the_decoder_by_hand(faithful: bool) -> None:
    n, d, k, heads, layers, iterations = 12, 8, 5, 4, 3, 7
    config = PIRNConfig(gat_heads=heads, n_iters=iterations)
    config = config.faithful() if faithful else config
    config = PIRNConfig(**{**vars(config), "num_prototypes": k, "num_layers": layers})
    model = PIRN({"rgb": d, "normals": d}, config).eval()

    transport = 2 * n * k * d + iterations * 2 * (2 * n * k)  # cost, then two products of matrix and vector each
    refine = transport + 2 * n * k * d + 3 * (2 * k * (2 * d) * d)  # context, and three linear layers on [p; c]
    assign = transport + 2 * n * k * d + 2 * n * k * d  # reconstruction, and a context that comes with it
    nodes = 2 * k
    align = 2 * nodes * d * d + 2 * k * k * d + 2 * nodes * nodes * d  # projection, neighbours, sum over edges
    inject = 2 * n * d * d + 2 * (2 * k * d * d) + 2 * (2 * n * k * d)  # queries; keys and values; attention
    by_hand = layers * (2 * (refine + assign + inject) + align)

    parameters = 2 * k * d + layers * (2 * 3 * (2 * d * d + d) + (d * d + 2 * d) + 2 * (3 * d * d + 1))
    assert sum(p.numel() for p in model.parameters()) == parameters
    model.requires_grad_(False)
    tokens = {modality: torch.rand(1, n, d) for modality in ("rgb", "normals")}
    assert count_flops(lambda: model(tokens, torch.ones(1, n, dtype=torch.bool))) == by_hand


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.of(SMALL, Seen(TINY, torch.device("cpu"), 0))


def test_a_bench_adds_up(bench: Bench) -> None:
    decoder = sum(p.numel() for p in bench.detector.reconstructor.parameters())
    expected = {"tokens": 64, "dim": 256, "encoder parameters": 0}
    assert bench.size == expected | {"decoder parameters": decoder, "trained parameters": decoder}
    operations = bench.operations()
    assert count_flops(bench.run) == sum(operations.values())
    assert min(operations.values()) > 0
    times = bench.time(3)
    assert times["ms low"] <= times["ms"] <= times["ms high"]
    assert times.pop("clock") == ("processor" if torch.get_num_threads() == 1 else "wall")
    assert min(times.values()) > 0
    assert not bench.detector.reconstructor._forward_hooks


def test_a_stage_is_timed_where_it_takes_its_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    encode, rebuild, judge = type(bench.extractor).forward, PIRN.forward, type(bench.detector.score).forward

    def slow(forward: Any, seconds: float) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return forward(*args, **kwargs)

        return call

    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(benches.time, name, lambda: clock[0])
    monkeypatch.setattr(type(bench.extractor), "forward", slow(encode, 1.0))
    monkeypatch.setattr(PIRN, "forward", slow(rebuild, 0.2))
    monkeypatch.setattr(type(bench.detector.score), "forward", slow(judge, 0.03))
    times = bench.time(3)
    stages = [times[f"{stage} ms"] for stage in ("encoder", "decoder", "score")]
    assert stages == pytest.approx([1000, 200, 30])
    assert times["ms"] == pytest.approx(1230)


def test_parameters_are_trained_or_frozen_and_a_shared_encoder_counts_once() -> None:
    seen = Seen(TINY, torch.device("cpu"), 0)
    config = PIRNConfig(image_size=64, num_prototypes=4, encoder="timm:mobilenetv2_100,weights=random")
    encoder = build_encoder(config.encoder, image_size=64)
    pirn, bank = (
        Bench.of(PIRNConfig(**{**vars(config), "detector": name}), seen) for name in ("pirn", "nearest_neighbour")
    )
    assert pirn.size["encoder parameters"] == sum(p.numel() for p in encoder.parameters())
    assert pirn.size["trained parameters"] == pirn.size["decoder parameters"] > 0
    assert (bank.size["decoder parameters"], bank.extractor) == (0, pirn.extractor)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells a process its peak memory")
def test_memory_is_that_of_the_detector_whatever_its_parent_holds(bench: Bench) -> None:
    held = bytearray(b"1" * 600_000_000)  # getrusage would have a child start with it
    bench.detector.register_buffer("ballast", torch.ones(50_000_000))
    try:
        loaded = bench.memory()
    finally:
        del bench.detector.ballast
    assert len(held) > loaded * 1e6
    assert 200 < loaded < 350  # 50 million float32, and what a small detector takes


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches.Path, "is_file", lambda path: False)
    assert math.isnan(benches._resident("VmHWM"))


def _row(encoder: str, detector: str, *, kind: str = "cpu", **more: Any) -> dict[str, Any]:
    row = {
        "device": f"a {kind}",
        "kind": kind,
        "clock": "wall",
        "encoder": encoder,
        "detector": detector,
        "shots": 10,
        "runs": 25,
    }
    row |= {"random weights": int("ViT" in encoder), "tokens": 256, "dim": 768, "peak MB": 100.4}
    row |= {"encoder parameters": 5_000_000, "decoder parameters": 2_000_000, "trained parameters": 2_000_000}
    row |= {"encoder flops": 77_000_000_000, "decoder flops": 2_000_000_000, "score flops": 500_000_000}
    row |= {"ms": 20.0, "ms low": 19.0, "ms high": 22.0, "encoder ms": 16.0, "decoder ms": 3.0, "score ms": 1.0}
    return row | more


def _table(folder: Path, rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    report.write_report(folder / "t", rows)
    with Image.open(folder / "t.png") as figure:
        figure.load()  # whole
        assert min(figure.size) > 100
    lines = [line.strip("| ").split(" | ") for line in (folder / "t.md").read_text().splitlines() if line[:1] == "|"]
    assert tuple(lines[0]) == report._HEADS
    return {(cells[0], cells[1]): cells for cells in lines[2:]}


def test_the_table_says_what_was_measured_and_what_was_printed(tmp_path: Path) -> None:
    rows = [
        _row("filter bank", report.OURS),
        _row("filter bank", "bank", ms=10.0, **{"peak MB": math.nan}),
        _row(report.VIT_B, report.AS_PRINTED),
    ]
    table = _table(tmp_path, rows)
    assert table["filter bank", "bank"] == [
        *("filter bank", "bank", "not measured", "79.50", "77.00 + 2.00 + 0.50", "5.00 + 2.00", "0.50"),
        *("80% / 15% / 5%", "10.0 (19.0 to 22.0)", "not measured", "not measured", "not measured"),
    ]
    assert table[report.VIT_B, report.AS_PRINTED][2] == "weights not available"
    for method, accuracy, gflops, latency in (
        ("M3DM", "0.845", "263.27", "21.61"),
        ("CFM", "0.845", "552.53", "60.57"),
        ("FIND", "0.921", "728.46", "76.09"),
        ("PIRN", "0.922", "103.36", "17.49"),
    ):
        cells = table["as printed", f"{method} (printed)"]
        assert cells[2:4] == [accuracy, gflops]
        assert f"{latency} (RTX 4090)" in cells
    text = (tmp_path / "t.md").read_text()
    assert "GPU: not measured" in text
    block = (24 * 257 * 768**2 + 4 * 257**2 * 768) * 1e-9
    assert "counts 79.50: the encoder of two modalities 77.00, the decoder 2.00" in text
    assert f"{79.5 + 4 * block:.2f}, and {103.36 - 79.5 - 4 * block:.2f} are still missing" in text
    assert f"would add {4 * 16 * 256 * 768**2 * 1e-9:.2f}" in text


def test_a_gpu_stands_beside_the_cpu(tmp_path: Path) -> None:
    rows = [_row("filter bank", report.OURS), _row("filter bank", report.OURS, kind="cuda", ms=2.0)]
    rows[1] |= {"ms low": 1.9, "ms high": 2.1, "peak MB": 55.0}
    cells = _table(tmp_path, rows)["filter bank", report.OURS]
    assert cells[-4:] == ["20.0 (19.0 to 22.0)", "100", "2.0 (1.9 to 2.1)", "55"]
    assert "CPU: a cpu, wall time. GPU: a cuda." in (tmp_path / "t.md").read_text()
    assert "printed GFLOPs" not in (tmp_path / "t.md").read_text()  # nothing to hold them against


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "_QUICK", TINY)
    detectors = {report.OURS: SMALL, "bank": PIRNConfig(image_size=64, detector="nearest_neighbour")}
    choice: dict[str, Any] = {"quick": True, "encoders": {"filter bank": "filter_bank"}, "detectors": detectors}
    measure, calls = Bench.time, []

    def stopped(self: Bench, repeats: int) -> Any:
        calls.append(repeats)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, repeats)

    monkeypatch.setattr(Bench, "time", stopped)
    monkeypatch.setattr(Bench, "memory", lambda self: 40.0)
    with pytest.raises(KeyboardInterrupt):
        efficiency.run(tmp_path, **choice)
    path = tmp_path / "efficiency-quick.csv"
    before = path.read_text()
    efficiency.run(tmp_path, **choice)
    assert len(calls) == 3  # the first was not measured again
    assert path.read_text().startswith(before.rstrip("\n"))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["detector"] for row in rows] == [report.OURS, "bank"]
    assert {row["shots"] for row in rows} == {"2"}
    assert "| filter bank | bank | not measured |" in (tmp_path / "efficiency-quick.md").read_text()


def test_every_detector_and_encoder_has_a_line() -> None:
    assert "efficiency" in STUDIES
    assert {"nearest neighbour", "gaussian"} < set(efficiency.DETECTORS)
    assert {config.detector for config in efficiency.DETECTORS.values()} >= {"pirn", "nearest_neighbour", "gaussian"}
    assert report.VIT_B in efficiency.ENCODERS
    assert all("random" in name for name in efficiency.ENCODERS.values() if name.startswith("timm:"))
    assert {label for label in efficiency.ENCODERS if label not in efficiency._NOT_QUICK} == {
        "filter bank",
        report.VIT_B,
    }


def test_the_study_takes_no_data_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["study", "efficiency", "--quick", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "draws its own parts and chooses its settings; give it --seeds and --quick alone" in capsys.readouterr().err
