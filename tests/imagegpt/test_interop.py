"""Parity with transformers' ImageGPT, and weights in and out of its folders and of OpenAI's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchcast.backbones.imagegpt_network import IMAGEGPT_SIZES, Cache
from patchcast.geometry import Grid
from patchcast.interop.imagegpt_weights import (
    assemble_pretrainer,
    from_openai,
    from_transformers,
    load_imagegpt,
    save_imagegpt,
    save_imagegpt_classifier,
    to_openai,
    to_transformers,
)
from patchcast.joint import JointClassifier
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.encoded import Encoded
from tests import contracts
from tests.imagegpt.parts import SQUARE, causal, masked

transformers = pytest.importorskip("transformers")


def theirs(**config: Any) -> Any:
    settings: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16, "vocab_size": 9} | config
    model = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(model: Any, grid: Grid = SQUARE) -> Pretrainer:
    weights, codes = from_transformers(model.state_dict()), model.config.vocab_size - 1
    return assemble_pretrainer(weights, Encoded(codes), heads=model.config.n_head, grid=grid, channels=1).eval()


def logits(pretrainer: Pretrainer, ids: Tensor) -> Tensor:
    return pretrainer.predictor.project(pretrainer.backbone.model(ids))


def shifted(ids: Tensor, start: int) -> Tensor:
    return torch.cat([torch.full((len(ids), 1), start), ids[:, :-1]], dim=1)


@torch.no_grad()
def test_logits_hidden_states_and_cache_are_those_of_transformers() -> None:
    model = theirs()
    pretrainer = ours(model)
    ids = torch.randint(8, (3, 16))
    expected = model(shifted(ids, 8), output_hidden_states=True, use_cache=True)
    torch.testing.assert_close(logits(pretrainer, ids), expected.logits, rtol=0, atol=1e-5)

    network = pretrainer.backbone.model
    states: list[Tensor] = []
    hooks = [each.register_forward_pre_hook(lambda _, args: states.append(args[0])) for each in network.blocks]
    states.append(network(ids))
    for hook in hooks:
        hook.remove()
    for state, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other, rtol=0, atol=1e-5)
    for layer, block, other in zip(network.layers(ids), model.transformer.h, expected.hidden_states, strict=False):
        torch.testing.assert_close(layer, block.ln_1(other), rtol=0, atol=1e-5)

    cache = Cache(network, 3)
    network.extend(ids[:, :-1], cache)
    for memory, other in zip(cache.memory, expected.past_key_values.layers, strict=True):
        torch.testing.assert_close(memory[0], other.keys, rtol=0, atol=1e-5)
        torch.testing.assert_close(memory[1], other.values, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "side", [8, pytest.param(32, marks=pytest.mark.slow)], ids=["64 positions", "the paper's 1,024 positions"]
)
def test_logits_of_size_s_are_those_of_transformers(side: int) -> None:
    depth, width, heads = IMAGEGPT_SIZES["S"]
    model = theirs(n_embd=width, n_layer=depth, n_head=heads, n_positions=side * side, vocab_size=513)
    pretrainer = ours(model, Grid(side, side))
    ids = torch.randint(512, (1, side * side))
    torch.testing.assert_close(logits(pretrainer, ids), model(shifted(ids, 512)).logits, rtol=0, atol=1e-5)


def test_the_loss_is_that_of_n_targets_and_gradients_agree() -> None:
    """transformers' own `labels` would leave the first pixel out."""
    model = theirs()
    pretrainer = ours(model)
    ids = torch.randint(8, (3, 16))
    own = pretrainer(ids.view(3, 1, 4, 4)).loss
    expected = torch.nn.functional.cross_entropy(model(shifted(ids, 8)).logits.flatten(0, 1), ids.flatten())
    own.backward()
    expected.backward()
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
    table = model.transformer.wte.weight.grad
    network = pretrainer.backbone.model
    torch.testing.assert_close(network.codes.weight.grad, table[:-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(network.start.grad, table[-1], rtol=0, atol=1e-6)
    fused = model.transformer.h[1].attn.c_attn
    torch.testing.assert_close(network.blocks[1].attn.qkv.weight.grad, fused.weight.grad.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(network.blocks[1].attn.qkv.bias.grad, fused.bias.grad, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("inner", [None, 48])
def test_a_folder_of_transformers_goes_in_and_out_exactly(tmp_path: Path, inner: int | None) -> None:
    clusters = np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32)
    model = theirs(n_inner=inner)
    model.save_pretrained(tmp_path / "theirs")
    size = {"height": 4, "width": 4}
    transformers.ImageGPTImageProcessor(clusters=clusters, size=size).save_pretrained(tmp_path / "theirs")

    pretrainer = load_imagegpt(tmp_path / "theirs").eval()
    assert pretrainer.backbone.channels == 3
    torch.testing.assert_close(pretrainer.backbone.tokenizer.colors, torch.from_numpy(clusters), rtol=0, atol=0)
    save_imagegpt(pretrainer, tmp_path / "ours")

    back = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "ours").eval()
    expected = model.state_dict()
    assert back.state_dict().keys() == expected.keys()
    for name, value in back.state_dict().items():
        assert torch.equal(value, expected[name]), name
    ids = shifted(torch.randint(8, (2, 16)), 8)
    assert torch.equal(back(ids).logits, model(ids).logits)
    processor = transformers.ImageGPTImageProcessor.from_pretrained(tmp_path / "ours")
    image = torch.randint(256, (1, 3, 4, 4), dtype=torch.uint8)
    own = pretrainer.backbone.tokenizer
    own.register_buffer("_table", None, persistent=False)
    pixels = (image.float() - 127.5) / 127.5
    distance = torch.cdist(pixels.permute(0, 2, 3, 1).reshape(-1, 3), own.colors)
    assert torch.equal(processor(list(image), return_tensors="pt")["input_ids"][0], distance.argmin(1))


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_our_weights_go_out_and_in_exactly(tmp_path: Path, bias: bool) -> None:
    pretrainer = contracts.perturbed(causal(bias=bias)).eval()
    save_imagegpt(pretrainer, tmp_path)
    back = load_imagegpt(tmp_path).eval()
    assert back.backbone.channels == 1
    assert back.state_dict().keys() == pretrainer.state_dict().keys()
    for name, value in back.state_dict().items():
        assert torch.equal(value, pretrainer.state_dict()[name]), name
    images = contracts.images_for(pretrainer)
    assert torch.equal(back(images).loss, pretrainer(images).loss)

    other = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path).eval()
    ids = torch.randint(8, (2, 16))
    torch.testing.assert_close(other(shifted(ids, 8)).logits, logits(pretrainer, ids), rtol=0, atol=1e-5)


@torch.no_grad()
def test_openais_arrays_compute_what_its_code_computes() -> None:
    """Their einsums, written out again over arrays with their names and shapes."""
    random = np.random.default_rng(0)
    width, heads, depth, codes, places = 32, 4, 2, 8, 16
    shapes: dict[str, tuple[int, ...]] = {"wte": (codes, width), "wtet": (codes, width), "sos": (width,)}
    shapes |= {"wpe": (places, width), "ln_f/g": (width,)}
    for layer in range(depth):
        shapes |= {f"h{layer}/attn/{each}_proj": (heads, width // heads, width) for each in "qkvc"}
        shapes |= {f"h{layer}/ln_{each}/g": (width,) for each in (1, 2)}
        shapes |= {f"h{layer}/mlp/c_fc/w": (width, 4 * width), f"h{layer}/mlp/c_proj/w": (4 * width, width)}
    arrays = {f"model/{name}": random.normal(size=shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}
    v = {name.removeprefix("model/"): value.astype(np.float64) for name, value in arrays.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * v[f"{name}/g"]

    ids = random.integers(codes, size=(2, places))
    x = np.concatenate([np.tile(v["sos"], (2, 1, 1)), v["wte"][ids[:, :-1]]], axis=1) + v["wpe"]
    for layer in range(depth):
        h = f"h{layer}"
        q, k, value = (np.einsum("bsf,hef->bhse", norm(x, f"{h}/ln_1"), v[f"{h}/attn/{e}_proj"]) for e in "qkv")
        w = np.einsum("bhse,bhte->bhst", q, k) / np.sqrt(width // heads)
        w = np.exp(np.where(np.tril(np.ones((places, places), bool)), w, -1e10))
        a = np.einsum("bhst,bhte->bhse", w / w.sum(-1, keepdims=True), value)
        x = x + np.einsum("bhse,hef->bsf", a, v[f"{h}/attn/c_proj"])
        y = norm(x, f"{h}/ln_2") @ v[f"{h}/mlp/c_fc/w"]
        x = x + (y / (1 + np.exp(-1.702 * y))) @ v[f"{h}/mlp/c_proj/w"]
    expected = norm(x, "ln_f") @ v["wtet"].T

    weights, found_heads = from_openai(arrays | {"clf/wclf": np.zeros((10, width), np.float32)})
    assert found_heads == heads
    pretrainer = assemble_pretrainer(weights, Encoded(codes), heads=heads, grid=Grid(4, 4)).eval()
    torch.testing.assert_close(
        logits(pretrainer, torch.from_numpy(ids)).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )
    back = to_openai(weights, heads)
    assert back.keys() == arrays.keys()
    for name, value in back.items():
        assert np.array_equal(value, arrays[name]), name
    through = from_transformers(to_transformers(weights))
    for name, value in through.network.items():
        assert torch.equal(value, weights.network[name]), name


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    pretrainer = causal(Grid(2, 6))
    save_imagegpt(pretrainer, tmp_path)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"size": {"height": 32, "width": 32}}))
    with pytest.raises(ValueError, match="12 positions, which are not a square; give the grid"):
        load_imagegpt(tmp_path)
    with pytest.raises(ValueError, match="12 codes; a 3x5 grid has 15"):
        load_imagegpt(tmp_path, grid=Grid(3, 5))
    assert load_imagegpt(tmp_path, grid=Grid(2, 6)).backbone.image_size == (2, 6)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no palette"):
        load_imagegpt(tmp_path, grid=Grid(2, 6))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"add_cross_attention": True}))
    with pytest.raises(ValueError, match="add_cross_attention=True; our network attends to the image only"):
        load_imagegpt(tmp_path, tokenizer=Encoded(8), grid=Grid(2, 6))
    file.write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="'gpt2', not 'imagegpt'"):
        load_imagegpt(tmp_path)
    with pytest.raises(ValueError, match="not a causal ImageGPT"):
        save_imagegpt(masked(), tmp_path)
    state = theirs(add_cross_attention=False).state_dict()
    with pytest.raises(ValueError, match=r"h\.0\.extra\.weight has no place"):
        from_transformers(state | {"transformer.h.0.extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no start token"):
        from_openai({"model/wte": np.zeros((8, 4), np.float32)})
    with pytest.raises(ValueError, match="would be lost"):
        to_openai(from_transformers(state), 4)


@torch.no_grad()
def test_a_classifier_goes_to_transformers(tmp_path: Path) -> None:
    model = JointClassifier(contracts.perturbed(causal()), classes=5).eval()
    torch.nn.init.normal_(model.head.weight)
    save_imagegpt_classifier(model, tmp_path)
    other, told = transformers.ImageGPTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[each] for each in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert other.config.num_labels == 5
    images = contracts.images_for(model.pretrainer)
    ids = model.pretrainer.backbone.tokenizer.encode(images)
    logits = other.eval()(shifted(ids, 8)).logits
    torch.testing.assert_close(logits, model.classify(images), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="not a causal ImageGPT"):
        save_imagegpt_classifier(JointClassifier(masked(), 5), tmp_path)
