"""PIRN's composition: Algorithm 1 line by line, what each switch turns off, and that the exchange is alive."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pirn import PIRN, PIRNConfig

from protoad.detection import Features
from protoad.losses import soft_mining_loss
from protoad.ops import sinkhorn, transport_context

D = 16
DIMS = {"rgb": D, "normals": D}
SMALL = PIRNConfig(num_prototypes=4, epochs=3, epsilon=0.05, update_bias=0.0)


def _features(b: int = 4, n: int = 36) -> Features:
    """Good parts: tokens around six patterns, the same pattern at the same place in both modalities."""
    kind = torch.randint(6, (b, n))
    tokens = {m: torch.randn(6, D)[kind] + 0.1 * torch.randn(b, n, D) for m in DIMS}
    return Features(tokens, torch.ones(b, n, dtype=torch.bool))


@pytest.mark.parametrize("residual", ["purified", "none"])
def test_one_layer_is_algorithm_1(residual: str) -> None:
    config = replace(SMALL, num_layers=1, residual=residual)
    model, shots = PIRN(DIMS, config), _features(2)
    layer = model.layers[0]
    refined, intra = {}, {}
    for m, z in shots.tokens.items():
        p = model.prototypes[m].expand(2, -1, -1)
        context = transport_context(sinkhorn(z, p).plan, z)  # lines 8-9
        refined[m] = layer.refine[m](p, context)  # line 10
        intra[m] = sinkhorn(z, refined[m]).plan @ refined[m]  # lines 12-13
    aligned = layer.align(refined["rgb"], refined["normals"])  # line 15
    for m, other in (("rgb", aligned.second), ("normals", aligned.first)):
        z = shots.tokens[m]
        attend = layer.inject[m]
        purified = z * intra[m].sigmoid()  # line 17
        scores = attend.query(purified) @ attend.key(other).mT / D**0.5
        mnc = attend.gate * (scores.softmax(-1) @ attend.value(other))  # lines 18-19
        if residual == "purified":
            mnc = purified + mnc
        torch.testing.assert_close(model(shots.tokens, shots.mask)[m], intra[m] + mnc)  # line 20


def test_layers_cascade_and_carry_refined_prototypes() -> None:
    model, shots = PIRN(DIMS, SMALL), _features(2)
    first, second = model.trace(shots.tokens, shots.mask)
    again = model.layers[1](first.tokens, first.prototypes, shots.mask)
    torch.testing.assert_close(again.tokens["rgb"], second.tokens["rgb"])


def test_a_test_image_leaves_no_trace() -> None:
    model, shots = PIRN(DIMS, SMALL), _features()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone = model(shots.pick(torch.tensor([0])).tokens, shots.mask[:1])
    model(shots.tokens, shots.mask)
    torch.testing.assert_close(model(shots.pick(torch.tensor([0])).tokens, shots.mask[:1])["rgb"], alone["rgb"])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_training_lowers_the_loss_and_reports_what_to_watch() -> None:
    model = PIRN(DIMS, replace(SMALL, epochs=30, residual="purified"))
    model.fit(_features())
    assert model.history[-1]["loss"] < 0.8 * model.history[0]["loss"]
    names = {f"{what}_{m}_{layer}" for what in ("gate", "displacement") for m in DIMS for layer in (0, 1)}
    assert model.history[0].keys() == {"loss", "leak", *names}
    assert all(figures[name] != 0 for figures in model.history for name in names)


@pytest.mark.parametrize("residual", ["purified", "none"])
def test_after_training_the_other_modality_is_heard(residual: str) -> None:
    model, shots = PIRN(DIMS, replace(SMALL, epochs=30, residual=residual)), _features()
    model.fit(shots)
    before = model(shots.tokens, shots.mask)["rgb"]
    with torch.no_grad():
        model.prototypes["normals"].copy_(torch.randn(4, D))
    change = (model(shots.tokens, shots.mask)["rgb"] - before).norm() / before.norm()
    assert change > 0.01


def test_the_leak_is_measured() -> None:
    """The printed residual lets the input through: the purified input is closer to the target than prototypes are."""
    shots = _features()
    printed, closed = (PIRN(DIMS, replace(SMALL, num_layers=1, residual=r)) for r in ("purified", "none"))
    for model in (printed, closed):
        model.fit(shots)
    assert printed.history[-1]["leak"] > 0.05
    assert closed.history[-1]["leak"] == 0
    noise = Features({m: torch.randn_like(t) for m, t in shots.tokens.items()}, shots.mask)

    def rebuilt_cosine(model: PIRN) -> float:
        rebuilt = model(noise.tokens, noise.mask)["rgb"]
        return torch.cosine_similarity(rebuilt, noise.tokens["rgb"], dim=-1).mean().item()

    assert rebuilt_cosine(printed) > rebuilt_cosine(closed) + 0.2  # the anomaly comes out as it went in


def test_switches_turn_their_part_off() -> None:
    shots = _features()
    plain = PIRN(DIMS, replace(SMALL, num_layers=1, mnc=False, aggregation="none"))
    assert not plain.layers[0].refine
    assert plain.layers[0].align is None
    expected = sinkhorn(shots.tokens["rgb"], plain.prototypes["rgb"]).plan @ plain.prototypes["rgb"]
    torch.testing.assert_close(plain(shots.tokens, shots.mask)["rgb"], expected)
    single = PIRN({"rgb": D}, replace(SMALL, modality="rgb"))
    assert not single.layers[0].inject
    assert single({"rgb": shots.tokens["rgb"]}, shots.mask).keys() == {"rgb"}


@pytest.mark.parametrize("missing", DIMS)
def test_without_one_modality_the_other_is_rebuilt_without_exchange(missing: str) -> None:
    shots, model = _features(), PIRN(DIMS, SMALL)
    model.fit(shots)
    apart = PIRN(DIMS, replace(SMALL, mnc=False))
    apart.load_state_dict(model.state_dict(), strict=False)
    (present,) = DIMS.keys() - {missing}
    found = model({present: shots.tokens[present]}, shots.mask)
    assert found.keys() == {present}
    assert torch.equal(found[present], apart(shots.tokens, shots.mask)[present])
    assert not torch.equal(found[present], model(shots.tokens, shots.mask)[present])


@pytest.mark.parametrize("assignment", ["transport", "softmax", "linear", "sigmoid", "attention"])
@pytest.mark.parametrize("aggregation", ["transport", "topk", "mean", "none"])
def test_every_combination_trains(assignment: str, aggregation: str) -> None:
    model = PIRN(DIMS, replace(SMALL, epochs=1, assignment=assignment, aggregation=aggregation))
    named = {"transport": "Sinkhorn", "topk": "TopK", "mean": "GlobalMean", "none": "None"}
    layer = model.layers[0]
    assert type(layer.assign["rgb"]).__name__ == f"{named.get(assignment, assignment.title())}Assign"
    aggregates = {**named, "transport": "Transport"}
    assert type(layer.aggregate).__name__.startswith(aggregates[aggregation])
    before = layer.inject["rgb"].value.weight.clone()
    model.fit(_features())
    assert not torch.equal(layer.inject["rgb"].value.weight, before)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_layer_norm_stands_between_the_layers_only() -> None:
    model, shots = PIRN(DIMS, replace(SMALL, layer_norm=True)), _features(2)
    assert [name for name, _ in model.named_parameters() if name.startswith("norms")] == [
        f"norms.0.{m}.{kind}" for m in DIMS for kind in ("weight", "bias")
    ]
    first, second = model.trace(shots.tokens, shots.mask)
    normalised = {m: torch.nn.functional.layer_norm(z, (D,)) for m, z in first.tokens.items()}
    again = model.layers[1](normalised, first.prototypes, shots.mask)
    torch.testing.assert_close(again.tokens["rgb"], second.tokens["rgb"])
    torch.testing.assert_close(first.tokens["rgb"], PIRN(DIMS, SMALL).trace(shots.tokens, shots.mask)[0].tokens["rgb"])


def test_deep_supervision_holds_every_layer_to_the_loss() -> None:
    shots = _features(2)
    plain, deep = (PIRN(DIMS, replace(SMALL, deep_supervision=on)) for on in (False, True))
    everything = torch.arange(2)
    with torch.no_grad():
        added = deep._step(shots, everything)[0] - plain._step(shots, everything)[0]
        intra = [state.intra[m] for state in plain.trace(shots.tokens, shots.mask) for m in DIMS]
        targets = [shots.tokens[m] for _ in plain.layers for m in DIMS]
        expected = sum(soft_mining_loss(z, t, token_mask=shots.mask) for z, t in zip(intra, targets, strict=True))
    torch.testing.assert_close(added, expected)


def test_masked_tokens_change_nothing() -> None:
    model, shots = PIRN(DIMS, SMALL), _features()
    mask = torch.arange(36).expand(4, -1) < 20
    spoiled = {m: torch.where(mask.unsqueeze(-1), t, 50.0) for m, t in shots.tokens.items()}
    one, other = model(shots.tokens, mask), model(spoiled, mask)
    torch.testing.assert_close(one["rgb"][mask], other["rgb"][mask])


def test_masked_tokens_take_no_part_in_training() -> None:
    shots = _features()
    mask = torch.rand(4, 36) > 0.4
    spoiled = {m: torch.where(mask.unsqueeze(-1), t, 50.0) for m, t in shots.tokens.items()}
    models = [PIRN(DIMS, SMALL).fit(Features(tokens, mask)) for tokens in (shots.tokens, spoiled)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


def test_prototypes_start_among_the_shots_and_scale_does_not_matter() -> None:
    config = replace(SMALL, num_prototypes=20)  # more than patterns: each gets one
    model, shots = PIRN(DIMS, config), _features()
    model.initialise(shots)
    nearest = torch.cdist(model.prototypes["rgb"], shots.tokens["rgb"].flatten(0, 1) / model.scale_rgb).min(1).values
    assert nearest.max() < 1
    big = PIRN(DIMS, config)
    big.initialise(Features({m: 100 * t for m, t in shots.tokens.items()}, shots.mask))
    scaled = big({m: 100 * t for m, t in shots.tokens.items()}, shots.mask)["rgb"]
    torch.testing.assert_close(scaled, 100 * model(shots.tokens, shots.mask)["rgb"], rtol=1e-3, atol=1e-2)


def test_same_seed_same_model_to_the_bit() -> None:
    shots = _features()
    models = [PIRN(DIMS, replace(SMALL, seed=seed)) for seed in (3, 3, 4)]
    for index, model in enumerate(models):
        torch.manual_seed(index)  # what the caller did before must not matter
        model.fit(shots)
    one, again, other = (model(shots.tokens, shots.mask)["rgb"] for model in models)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_compiles_whole() -> None:
    model, shots = PIRN(DIMS, replace(SMALL, n_iters=2)), _features(2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(shots.tokens, shots.mask)["rgb"], model(shots.tokens, shots.mask)["rgb"])


GUARDED = replace(SMALL, guard=True)


def _with_anomaly(shots: Features) -> Features:
    """Half of the tokens of every part replaced by one that no good part has."""
    strange = torch.arange(36) < 18
    foreign = {m: torch.where(strange.unsqueeze(-1), 3 * torch.randn(D), t) for m, t in shots.tokens.items()}
    return Features(foreign, shots.mask)


def test_the_guard_is_fitted_to_the_shots_and_trains_as_without() -> None:
    shots = _features()
    plain, guarded = PIRN(DIMS, SMALL).fit(shots), PIRN(DIMS, GUARDED).fit(shots)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(guarded.state_dict()[name], value, rtol=0, atol=0)
    limits = {name for name in guarded.state_dict() if name not in plain.state_dict()}
    assert limits == {f"layers.{i}.guard.{m}.limit" for i in (0, 1) for m in DIMS}
    assert all(0 < guarded.state_dict()[name] < 1 for name in limits)
    before = [guarded.state_dict()[name].clone() for name in sorted(limits)]
    guarded.fit_guard(shots)
    assert before == [guarded.state_dict()[name] for name in sorted(limits)]


def test_the_first_guard_measures_against_the_codebook_and_the_second_against_what_it_left() -> None:
    shots = _features()
    model = PIRN(DIMS, GUARDED).fit(shots)
    first = model.trace(shots.tokens, shots.mask)[0]
    entering = [(shots.tokens["rgb"] / model.scale_rgb, model.prototypes["rgb"].expand(4, -1, -1))]
    entering.append((first.tokens["rgb"], first.prototypes["rgb"]))
    for layer, (tokens, prototypes) in zip(model.layers, entering, strict=True):
        costs = 1 - torch.cosine_similarity(tokens.unsqueeze(2), prototypes.unsqueeze(1), dim=-1)
        expected = costs.min(-1).values.quantile(0.9)
        torch.testing.assert_close(layer.guard["rgb"].limit, expected, rtol=1e-4, atol=1e-5)


def test_with_the_guard_an_anomaly_moves_prototypes_less() -> None:
    shots = _features()
    spoiled = _with_anomaly(shots)
    moved = {}
    for config in (SMALL, GUARDED):
        model = PIRN(DIMS, replace(config, num_prototypes=12)).fit(shots)  # every pattern has one
        pair = [model.trace(parts.tokens, parts.mask)[-1].prototypes["rgb"] for parts in (spoiled, shots)]
        moved[config.guard] = (pair[0] - pair[1]).norm().item()
    assert moved[True] < 0.5 * moved[False]


def test_with_the_guard_too_masks_batches_and_the_compiler_change_nothing() -> None:
    shots = _features()
    model, spoiled = PIRN(DIMS, replace(GUARDED, n_iters=2, num_layers=1)).fit(shots), _with_anomaly(shots)
    mask = torch.arange(36).expand(4, -1) > 8
    whole = model(spoiled.tokens, mask)["rgb"]
    other = {m: torch.where(mask.unsqueeze(-1), t, 50.0) for m, t in spoiled.tokens.items()}
    torch.testing.assert_close(model(other, mask)["rgb"][mask], whole[mask])
    alone = model({m: t[2:3] for m, t in spoiled.tokens.items()}, mask[2:3])["rgb"]
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-4, atol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(spoiled.tokens, mask)["rgb"], whole)


@pytest.mark.parametrize("aggregation", ["transport", "topk", "mean"])
def test_the_guard_stands_before_every_aggregation(aggregation: str) -> None:
    shots = _features()
    model = PIRN(DIMS, replace(GUARDED, aggregation=aggregation)).fit(shots)
    plain = PIRN(DIMS, replace(SMALL, aggregation=aggregation))
    plain.load_state_dict(model.state_dict(), strict=False)
    spoiled = _with_anomaly(shots)
    one, other = (m.trace(spoiled.tokens, spoiled.mask)[0].prototypes["rgb"] for m in (model, plain))
    assert (one - other).abs().max() > 1e-3
