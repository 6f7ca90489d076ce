"""CFM, INP-Former and AST: what each computes, against loops, hand-made cases and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from protoad_detectors import ASTReconstructor, CFMReconstructor, INPFormerReconstructor
from protoad_detectors.cfm import CFMScore
from protoad_detectors.flow import Flow, position_encoding
from protoad_detectors.inp_former import coherence_loss, relu_attention

from protoad.detection import Features
from protoad.errors import ConfigError

DIMS = {"rgb": 8, "normals": 8}


def _shots(b: int = 3, n: int = 36) -> Features:
    return Features({m: torch.randn(b, n, 8) for m in DIMS}, torch.rand(b, n) > 0.3)


def test_cfm_predicts_each_modality_from_the_other() -> None:
    shots = _shots()
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    shots.tokens["normals"] = shots.tokens["rgb"] @ turn
    cfm = CFMReconstructor(DIMS, epochs=40).fit(shots)
    assert cfm.history[-1]["loss"] < 0.5 * cfm.history[0]["loss"]
    query = {m: t.clone() for m, t in shots.tokens.items()}
    before = cfm(query, shots.mask)
    query["rgb"][0, shots.mask[0]] += 1
    after = cfm(query, shots.mask)
    assert torch.equal(after["rgb"], before["rgb"])
    assert (after["normals"][0, shots.mask[0]] != before["normals"][0, shots.mask[0]]).any(-1).all()
    widths = [layer.out_features for layer in cfm.predict["rgb"] if isinstance(layer, torch.nn.Linear)]
    assert widths == [8, 8, 8]


def test_cfm_scores_the_product_of_the_distances() -> None:
    targets = {"rgb": torch.tensor([[[2.0, 0.0]]]), "normals": torch.tensor([[[0.0, 3.0]]])}
    rebuilt = {"rgb": torch.tensor([[[0.0, 5.0]]]), "normals": torch.tensor([[[0.0, -1.0]]])}
    scores = CFMScore()(targets, rebuilt)
    assert scores["rgb"].item() == pytest.approx(math.sqrt(2))
    assert scores["normals"].item() == pytest.approx(2)
    assert scores["fused"].item() == pytest.approx(2 * math.sqrt(2))
    assert CFMScore()(targets, {**rebuilt, "rgb": targets["rgb"] * 7})["fused"].item() == pytest.approx(0)


def test_cfm_wants_both_modalities() -> None:
    with pytest.raises(ConfigError, match="expected rgb and normals"):
        CFMReconstructor({"rgb": 8})


def test_the_coherence_loss_equals_a_loop() -> None:
    tokens, prototypes, mask = torch.randn(2, 5, 4), torch.randn(2, 3, 4), torch.rand(2, 5) > 0.4
    expected = [
        min(1 - float(torch.cosine_similarity(tokens[b, n], p, dim=0)) for p in prototypes[b])
        for b in range(2)
        for n in range(5)
        if mask[b, n]
    ]
    assert float(coherence_loss(tokens, prototypes, mask)) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_relu_attention_equals_a_loop() -> None:
    q, k, v, scale = (
        torch.randn(2, 3, 5, 4),
        torch.randn(2, 3, 6, 4),
        torch.randn(2, 3, 6, 4),
        torch.tensor([1, 2, -0.5]),
    )
    found = relu_attention(q, k, v, scale)
    for b in range(2):
        for h in range(3):
            for n in range(5):
                cosines = [float(torch.cosine_similarity(q[b, h, n], key, dim=0)) for key in k[b, h]]
                expected = sum(max(float(scale[h]) * c, 0) * value for c, value in zip(cosines, v[b, h], strict=True))
                torch.testing.assert_close(found[b, h, n], expected)


def test_nothing_but_prototypes_passes_the_inp_decoder() -> None:
    """Without a residual around the attention: prototypes of zero rebuild every token alike."""
    layer = INPFormerReconstructor(DIMS).streams["rgb"].decoder[0]
    torch.nn.init.zeros_(layer.value.bias)
    rebuilt = layer(torch.randn(2, 9, 8), torch.zeros(2, 6, 8))
    torch.testing.assert_close(rebuilt, rebuilt[:1, :1].expand_as(rebuilt))


def test_prototypes_are_taken_from_what_counts_as_if_the_rest_were_gone() -> None:
    inp, shots = INPFormerReconstructor(DIMS), _shots(1)
    kept = shots.mask[0]
    rest = Features({m: t[:, kept] for m, t in shots.tokens.items()}, shots.mask[:, kept])
    whole, short = inp(shots.tokens, shots.mask), inp(rest.tokens, rest.mask)
    for modality in DIMS:
        torch.testing.assert_close(whole[modality][:, kept], short[modality])


def test_the_two_streams_are_independent_and_learn() -> None:
    shots = _shots()
    for tokens in shots.tokens.values():
        tokens.copy_(torch.randn(3, 8)[torch.randint(3, (3, 36))])  # three kinds of tokens
    inp = INPFormerReconstructor(DIMS, epochs=20).fit(shots)
    assert inp.history[-1]["loss"] < 0.7 * inp.history[0]["loss"]
    both = inp(shots.tokens, shots.mask)
    alone = inp({"rgb": shots.tokens["rgb"]}, shots.mask)
    assert torch.equal(both["rgb"], alone["rgb"])
    with pytest.raises(ConfigError, match="expected a divisor of the 6 channels of rgb, got 4"):
        INPFormerReconstructor({"rgb": 6}, num_heads=4)


def _flow(dim: int) -> Flow:
    flow = Flow(dim, 3, num_couplings=4).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return flow


@pytest.mark.parametrize("dim", [5, 6])
def test_the_flow_is_inverted(dim: int) -> None:
    flow, tokens, condition = _flow(dim), torch.randn(2, 7, dim).double(), torch.randn(2, 7, 3).double()
    latents, _ = flow(tokens, condition)
    assert not torch.allclose(latents, tokens, atol=0.1)
    torch.testing.assert_close(flow.inverse(latents, condition), tokens)
    other, _ = flow(tokens, condition + 1)
    assert not torch.allclose(other, latents, atol=1e-2)


@pytest.mark.parametrize("dim", [5, 6])
def test_the_log_determinant_is_that_of_autograd(dim: int) -> None:
    flow, token, condition = _flow(dim), torch.randn(dim).double(), torch.randn(3).double()
    jacobian = torch.autograd.functional.jacobian(lambda t: flow(t, condition)[0], token)
    torch.testing.assert_close(flow(token, condition)[1], torch.linalg.slogdet(jacobian).logabsdet)


def test_a_scale_is_bounded_softly() -> None:
    coupling = _flow(6).couplings[0]
    coupling.network[-1].bias.data[:3] = torch.tensor([1e9, -1e9, 0.0])
    torch.nn.init.zeros_(coupling.network[-1].weight)
    _, log_scale = coupling(torch.randn(6).double(), torch.randn(3).double())
    assert log_scale.tolist() == pytest.approx([1.9, -1.9, 0.0], abs=1e-6)


def test_a_fresh_flow_only_shuffles() -> None:
    tokens = torch.randn(3, 8)
    latents, log_det = Flow(8, 2)(tokens, torch.randn(3, 2))
    torch.testing.assert_close(latents.sort(-1).values, tokens.sort(-1).values)
    assert log_det.abs().max() == 0


def test_every_place_has_a_code_of_its_own() -> None:
    codes = position_encoding((3, 5), 32)
    assert codes.shape == (15, 32)
    assert torch.cdist(codes, codes).fill_diagonal_(1).min() > 0.1
    row_2_column_4 = codes[2 * 5 + 4]
    assert row_2_column_4[0].item() == pytest.approx(math.sin(2))
    assert row_2_column_4[8].item() == pytest.approx(math.sin(4))
    assert row_2_column_4[16].item() == pytest.approx(math.cos(2))


def test_the_teacher_learns_the_density_and_the_student_the_teacher() -> None:
    shots = _shots(b=4)
    ast = ASTReconstructor(DIMS, grid=(6, 6), epochs=15).fit(shots)
    assert len(ast.history) == 30
    assert ast.history[14]["loss"] < ast.history[0]["loss"]
    assert ast.history[29]["loss"] < 0.8 * ast.history[15]["loss"]
    rebuilt = ast(shots.tokens, shots.mask)
    scores = ast.own_score()(shots.tokens, rebuilt)
    positions = ast.positions.expand(4, -1, -1)
    scaled = ast.scaled(shots.tokens, shots.mask)
    for m in DIMS:
        difference = ast.teachers[m](scaled[m], positions)[0] - ast.students[m](scaled[m], positions)
        torch.testing.assert_close(
            scores[m][shots.mask], difference.square().mean(-1)[shots.mask], rtol=1e-3, atol=1e-4
        )
    torch.testing.assert_close(scores["fused"], scores["rgb"] + scores["normals"])
