"""timm backbones: the right outputs, and one clear sentence for every way of not getting a model."""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from protoad.encoders import TimmEncoder, build_encoder
from protoad.encoders.timm_weights import _import_timm
from protoad.errors import EncoderError

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)
timm: Any = _import_timm()

VIT = "vit_tiny_patch16_224"
REAL_NAME = "mobilenetv2_100_tf_imagenet_int8_dequant.safetensors"


@pytest.fixture(scope="module")
def vit() -> TimmEncoder:
    encoder = build_encoder(f"timm:{VIT}", weights="random", image_size=64)
    assert isinstance(encoder, TimmEncoder)
    return encoder


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(VIT).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    return path


@pytest.mark.parametrize("blocks", [None, [0, 3, 5]])
def test_vit_tokens_are_the_mean_of_raw_block_outputs(vit_file: Path, blocks: list[int] | None) -> None:
    encoder = TimmEncoder(VIT, weights=vit_file, image_size=64, blocks=blocks)
    full = timm.create_model(
        VIT, pretrained=True, pretrained_cfg_overlay={"file": str(vit_file), "custom_load": False}, img_size=64
    ).eval()
    chosen = blocks or range(2, 10)
    outputs = []
    for index in chosen:
        full.blocks[index].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        full((images - 0.5) / 0.5)
    expected = torch.stack(outputs).mean(0)[:, 1:]
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_vit_drops_what_comes_after_the_last_block(vit: TimmEncoder) -> None:
    assert vit.blocks == list(range(2, 10))
    assert len(vit.model.blocks) == 10
    assert vit(torch.rand(1, 3, 64, 64)).shape == (1, 16, 192)
    assert vit.grid(64) == (4, 4)
    assert vit.dim == 192


def test_register_tokens_are_dropped() -> None:
    encoder = TimmEncoder("vit_small_patch14_reg4_dinov2", weights="random", image_size=28, blocks=[0])
    assert encoder(torch.rand(1, 3, 28, 28)).shape == (1, 4, 384)


def test_default_blocks_scale_with_the_depth() -> None:
    encoder = TimmEncoder(VIT, weights="random", image_size=32, depth=24)
    assert encoder.blocks == [4, 6, 8, 10, 12, 14, 16, 18]


def test_frozen(vit: TimmEncoder) -> None:
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    assert not any(module.training for module in vit.train().modules())
    assert not vit(torch.rand(1, 3, 64, 64)).requires_grad


def test_cnn_levels_are_resized_to_the_middle_and_concatenated() -> None:
    encoder = build_encoder("timm:resnet10t,levels=1-3,mean=0.5,std=0.25", weights="random", image_size=64, seed=4)
    torch.manual_seed(4)
    plain = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        fine, middle, coarse = plain((images - 0.5) / 0.25)
    size = middle.shape[-2:]
    parts = [F.interpolate(fine, size, mode="bilinear"), middle, F.interpolate(coarse, size, mode="bilinear")]
    expected = torch.cat(parts, 1).permute(0, 2, 3, 1).flatten(1, 2)
    assert encoder.grid(64) == (8, 8)
    assert encoder.dim == expected.shape[-1]
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_fingerprint_follows_weights_blocks_and_normalisation(vit: TimmEncoder) -> None:
    def build(options: str = "", **arguments: Any) -> str:
        return build_encoder(f"timm:{VIT}{options}", weights="random", image_size=64, **arguments).fingerprint()

    assert build() == vit.fingerprint()
    assert len({vit.fingerprint(), build(seed=1), build(",blocks=2-8"), build(",mean=0.4")}) == 4
    copied = copy.deepcopy(vit)
    assert copied.half().fingerprint() != vit.fingerprint()


def test_random_weights_say_so_and_leave_the_global_generator_alone(vit: TimmEncoder) -> None:
    assert vit.name == f"timm:{VIT},weights=random"
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    again = build_encoder(vit.name, image_size=64)
    assert torch.equal(torch.rand(1), expected)
    assert again.name == vit.name
    assert again.fingerprint() == vit.fingerprint()


def test_position_embedding_is_resampled_from_the_file(vit_file: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(vit_file)["pos_embed"][:, 1:].view(1, 14, 14, -1).permute(0, 3, 1, 2)
    encoder = TimmEncoder(VIT, weights=vit_file, image_size=64)
    expected = F.interpolate(stored, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.model.pos_embed[:, 1:], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("timm:", {}, "no model is named"),
        ("timm:vit_tinny_patch16_224", {}, "close names: vit_tiny_patch16_224"),
        ("timm:resnet10t.nope", {}, "no weights 'nope' for resnet10t"),
        ("timm:resnet10t,wrong", {"weights": "random"}, "cannot read 'wrong'"),
        ("timm:resnet10t,wrong=1", {"weights": "random"}, "does not take an option.*wrong"),
        ("timm:resnet10t,mean=grey", {"weights": "random"}, "one number or three"),
        ("timm:resnet10t,blocks=1-2", {"weights": "random"}, "has levels, not blocks"),
        ("timm:resnet10t,levels=3-1", {"weights": "random"}, "levels=2-9"),
        ("timm:resnet10t,levels=1-9", {"weights": "random"}, "cannot build resnet10t"),
        ("timm:resnet10t", {"weights": "random", "image_size": 220}, "use 216 or 224"),
        (f"timm:{VIT}", {"weights": "random", "image_size": 40}, "use 32 or 48"),
        (f"timm:{VIT},blocks=2-12", {"weights": "random"}, "blocks must be 0 to 11"),
        (f"timm:{VIT},levels=1-3", {"weights": "random"}, "has blocks, not levels"),
        ("timm:resnet10t,weights=a.pth", {}, "only weights=random"),
        ("timm:swin_tiny_patch4_window7_224", {"weights": "random"}, "plain vision transformer or a convolutional"),
    ],
)
def test_bad_names_and_options(name: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EncoderError, match=sentence):
        build_encoder(name, **arguments)(torch.rand(1, 3, 224, 224))


def test_another_size_than_built_for(vit: TimmEncoder) -> None:
    with pytest.raises(EncoderError, match="built for images of 64 px, got 80"):
        vit(torch.rand(1, 3, 80, 80))


def test_bad_weight_files(tmp_path: Path, vit_file: Path, resnet_file: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights at all")
    (tmp_path / "cut.safetensors").write_bytes(vit_file.read_bytes()[:100_000])
    cases = [
        (VIT, tmp_path / "absent.pth", "no such weight file"),
        (VIT, tmp_path, "no such weight file"),
        (VIT, tmp_path / "text.pth", "cannot be read as weights"),
        (VIT, tmp_path / "text.safetensors", "cannot be read as weights"),
        (VIT, tmp_path / "cut.safetensors", "cannot be read as weights"),
        (VIT, resnet_file, "belongs? to another model"),
        ("vit_small_patch16_224", vit_file, "belongs? to another model.*size mismatch"),
        ("resnet18", resnet_file, "belongs? to another model"),
        ("mobilenetv2_050", vit_file, "belongs? to another model"),
    ]
    for model, path, sentence in cases:
        with pytest.raises(EncoderError, match=sentence) as caught:
            build_encoder(f"timm:{model}", weights=path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_pickled_code_in_a_weight_file_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": Payload()}, tmp_path / "payload.pth")
    with pytest.raises(EncoderError, match="cannot be read as weights"):
        build_encoder("timm:resnet10t", weights=tmp_path / "payload.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("offline", [True, False])
def test_unreachable_hub_fails_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool) -> None:
    from huggingface_hub import constants

    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE is set" if offline else "out of reach") as caught:
        build_encoder("timm:resnet10t")
    assert time.monotonic() - start < 10
    assert "weights=FILE" in str(caught.value)


def test_cached_hub_weights_need_no_network(monkeypatch: pytest.MonkeyPatch, resnet_file: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(resnet_file))
    cached = build_encoder("timm:resnet10t", image_size=64)
    assert cached.fingerprint() == build_encoder("timm:resnet10t", weights=resnet_file, image_size=64).fingerprint()


def test_real_mobilenet() -> None:
    folder = os.environ.get("PROTOAD_WEIGHTS")
    path = Path(folder or "") / REAL_NAME
    if folder is None or not path.is_file():
        pytest.skip(f"set PROTOAD_WEIGHTS to the folder of {REAL_NAME}")
    encoder = build_encoder("timm:mobilenetv2_100,pad_type=same,mean=0.5,std=0.5", weights=path)
    assert encoder.grid(224) == (28, 28)
    assert encoder.dim == 24 + 32 + 96
    ramp = torch.linspace(0, 1, 224).expand(1, 3, 224, 224)
    tokens = encoder(ramp)
    assert tokens.shape == (1, 784, 152)
    assert tokens.isfinite().all()
    assert tokens.std() > 0.05
    with pytest.raises(EncoderError, match="another model"):
        build_encoder("timm:mobilenetv2_050", weights=path)
