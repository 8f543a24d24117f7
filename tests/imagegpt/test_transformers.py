"""transformers' ImageGPT classes and ours of the same names: the same calls give the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchcast.backbones.imagegpt_network import ACTIVATIONS
from patchcast.geometry import Grid
from patchcast.interop import load_imagegpt, load_imagegpt_classifier, save_imagegpt, save_imagegpt_classifier
from patchcast.interop import transformers as ours
from patchcast.interop.imagegpt_weights import NoHeadWarning
from patchcast.tokenizers.encoded import Encoded

transformers = pytest.importorskip("transformers")
NAMES = ("ImageGPTModel", "ImageGPTForCausalImageModeling", "ImageGPTForImageClassification")
BASE, CAUSAL, CLASSIFIER = NAMES
SMALL = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16, "vocab_size": 9}
OTHERS: list[dict[str, Any]] = [
    {},
    {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-2},
    {"scale_attn_by_inverse_layer_idx": True, "n_inner": 48},
    {"scale_attn_weights": False, "tie_word_embeddings": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "is_decoder": True},
    {"use_cache": False, "output_attentions": True, "output_hidden_states": True, "return_dict": False},
]


def theirs(name: str = CAUSAL, **config: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.ImageGPTConfig(**{**SMALL, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def own(model: Any) -> Any:
    return getattr(ours, type(model).__name__).from_state_dict(model.state_dict(), model.config)


def codes(rows: int = 2, length: int = 16) -> Tensor:
    return torch.randint(9, (rows, length), generator=torch.Generator().manual_seed(1))


def plain(value: Any) -> list[Tensor]:
    """All tensors of an output, in their order."""
    if value is None or isinstance(value, Tensor):
        return [] if value is None else [value]
    layers = getattr(value, "layers", None)
    if layers is not None:
        return [each for layer in layers for each in (layer.keys, layer.values)]
    return [each for part in (value if isinstance(value, tuple) else value.to_tuple()) for each in plain(part)]


def assert_same(found: Any, expected: Any) -> None:
    found, expected = plain(found), plain(expected)
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: "-".join(config) or "plain")
@pytest.mark.parametrize("name", NAMES)
def test_every_class_gives_the_same_under_every_config(name: str, config: dict[str, Any]) -> None:
    model = theirs(name, **config)
    mine = own(model)
    padded = torch.ones(2, 16, dtype=torch.long)
    padded[0, :3], padded[1, 12:] = 0, 0
    calls: list[dict[str, Any]] = [
        {"input_ids": codes()},
        {"input_ids": codes(length=7), "output_hidden_states": True, "output_attentions": True},
        {"input_ids": codes(), "attention_mask": padded, "output_attentions": True},
        {"input_ids": codes(), "attention_mask": padded.flip(1), "use_cache": False},
        {"input_ids": codes(), "position_ids": torch.arange(15, -1, -1)[None], "token_type_ids": codes().flip(1)},
        {"inputs_embeds": torch.randn(2, 16, 32), "return_dict": False},
    ]
    with torch.no_grad():
        for call in calls:
            found, expected = mine(**call), model(**call)
            assert isinstance(found, tuple) == isinstance(expected, tuple)
            assert_same(found, expected)
            if not isinstance(found, tuple):
                assert list(found) == list(expected)
                assert found[0] is found[next(iter(found))]


@pytest.mark.parametrize("config", OTHERS[:5], ids=lambda config: "-".join(config) or "plain")
@torch.no_grad()
def test_places_may_come_one_after_the_other(config: dict[str, Any]) -> None:
    """With keys and values kept by us, or by transformers; with a mask of all of them."""
    model = theirs(**config)
    mine, ids = own(model), codes()
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[0, 0] = 0
    for past in (None, transformers.DynamicCache()):
        first = mine(ids[:, :6], past_key_values=past, use_cache=True, attention_mask=mask[:, :6])
        expected = model(ids[:, :6], use_cache=True, attention_mask=mask[:, :6])
        for at, to in ((6, 7), (7, 12)):
            call = {"attention_mask": mask[:, :to], "output_attentions": True, "use_cache": True}
            first = mine(ids[:, at:to], past_key_values=first.past_key_values, **call)
            expected = model(ids[:, at:to], past_key_values=expected.past_key_values, **call)
            assert_same(first, expected)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_beginnings_of_images_agree(name: str) -> None:
    model = theirs(name)
    mine = own(model)
    embeds = torch.randn(2, 5, 32)
    grads = []
    for each in (mine, model):
        given = embeds.clone().requires_grad_()
        each(inputs_embeds=given, use_cache=False)[0].square().sum().backward()
        each(codes(length=5))[0].square().sum().backward()
        grads.append(given.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
    network = mine.trunk.network
    trunk = getattr(model, "transformer", model)
    torch.testing.assert_close(network.codes.weight.grad, trunk.wte.weight.grad[:-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.start.grad, trunk.wte.weight.grad[-1], rtol=1e-4, atol=1e-5)
    fused = trunk.h[1].attn.c_attn.weight.grad.T
    torch.testing.assert_close(network.blocks[1].attn.qkv.weight.grad, fused, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    mine = own(theirs(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    grads = []
    for is_on in (False, True):
        (mine.gradient_checkpointing_enable if is_on else mine.gradient_checkpointing_disable)()
        mine.zero_grad()
        output = mine(codes(), labels=codes() % 8)
        output.loss.backward()
        assert (output.past_key_values is None) == is_on
        grads.append([parameter.grad.clone() for parameter in mine.parameters()])
    for plain_one, other in zip(*grads, strict=True):
        torch.testing.assert_close(plain_one, other)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
def test_the_loss_of_labels_is_theirs(config: dict[str, Any]) -> None:
    model = theirs(**config)
    labels = codes() % 8
    labels[0, 4:9] = -100
    assert_same(own(model)(codes(), labels=labels), model(codes(), labels=labels))


@pytest.mark.parametrize(
    ("labels", "config", "kind"),
    [
        (torch.tensor([1, 2]), {"num_labels": 3}, "single_label_classification"),
        (torch.tensor([0.5, -1.0]), {"num_labels": 1}, "regression"),
        (torch.randn(2, 3), {"num_labels": 3, "problem_type": "regression"}, "regression"),
        (torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), {"num_labels": 3}, "multi_label_classification"),
    ],
)
def test_a_classifiers_loss_is_that_of_its_problem(labels: Tensor, config: dict[str, Any], kind: str) -> None:
    model = theirs(CLASSIFIER, **config)
    mine = own(model)
    assert_same(mine(codes(), labels=labels), model(codes(), labels=labels))
    assert mine.config.problem_type == model.config.problem_type == kind


def test_all_their_activations_are_here_but_those_with_parameters() -> None:
    x = torch.linspace(-8, 12, 401)
    for name in transformers.activations.ACT2FN:
        if name in ("prelu", "xielu"):
            with pytest.raises(ValueError, match=f"no activation '{name}'"):
                ours.ImageGPTModel(ours.ImageGPTConfig(**SMALL, activation_function=name))
        else:
            other = transformers.activations.ACT2FN[name]
            torch.testing.assert_close(ACTIVATIONS[name](x), other(x), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
def test_dropout_acts_where_theirs_does(name: str) -> None:
    """Where all is dropped there is no chance left; in eval mode nothing is."""
    rates = {each: float(each == name) for each in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
    model = theirs(**rates)
    mine = own(model)
    before = mine(codes()).logits
    torch.testing.assert_close(before, model(codes()).logits, rtol=1e-4, atol=1e-5)
    call = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    found = mine.train()(codes(), **call)
    assert_same(found, model.train()(codes(), **call))
    assert not torch.allclose(found.logits, before)
    if name != "attn_pdrop":  # the fused kernels know no rate of 1
        torch.testing.assert_close(mine(codes()).logits, found.logits, rtol=1e-4, atol=1e-5)
    half = own(theirs(**{name: 0.5, **{each: 0.0 for each in rates if each != name}})).train()
    assert not torch.equal(half(codes()).logits, half(codes()).logits)


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "top_k": 4}, {"do_sample": True, "top_k": 0, "top_p": 0.7, "temperature": 1.3}],
)
def test_generation_draws_theirs(options: dict[str, Any]) -> None:
    model = theirs()
    start = torch.full((3, 1), 8)
    found = []
    for each in (own(model), model):
        torch.manual_seed(0)
        found.append(each.generate(input_ids=start, max_length=17, **options))
    assert torch.equal(*found)
    assert found[0].shape == (3, 17)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["whole", "shards", "bin", "bin shards"])
def test_every_folder_that_they_write_opens(name: str, kind: str, tmp_path: Path) -> None:
    config = {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3, "resid_pdrop": 0.3, "num_labels": 3}
    model = theirs(name, **config)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if "shards" in kind else "1GB")
    if "bin" in kind:  # as older versions wrote it
        _pickle_weights(tmp_path)
    assert (len(list(tmp_path.glob("*.bin" if "bin" in kind else "*.safetensors"))) > 1) == ("shards" in kind)
    mine = getattr(ours, name).from_pretrained(tmp_path)
    assert not mine.training
    assert_same(mine(codes()), model(codes()))

    ids = codes()[:, :1].expand(-1, 16) % 8
    shifted = torch.cat([torch.full((2, 1), 8), ids[:, :-1]], dim=1)
    features = getattr(model, "transformer", model)(shifted).last_hidden_state
    with pytest.warns(NoHeadWarning) if name != CAUSAL else _nothing():
        pretrainer = load_imagegpt(tmp_path, tokenizer=Encoded(8))
    assert pretrainer.backbone.model.proj_drop == 0.3
    torch.testing.assert_close(pretrainer.backbone.model(ids), features, rtol=1e-4, atol=1e-5)
    if name == CLASSIFIER:
        classifier = load_imagegpt_classifier(tmp_path, tokenizer=Encoded(8))
        expected = model(shifted).logits
        torch.testing.assert_close(classifier.classify(ids.view(2, 1, 4, 4)), expected, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="has no classifier"):
            load_imagegpt_classifier(tmp_path, tokenizer=Encoded(8))

    # And back, with everything that the config says.
    mine.save_pretrained(tmp_path / "again")
    back, told = getattr(transformers, name).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(told[each] for each in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for entry, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[entry], value), entry
    differing = {
        entry for entry, value in model.config.to_dict().items()
        if back.config.to_dict().get(entry) != value and entry not in ("_name_or_path", "dtype", "architectures")
    }  # fmt: skip
    assert not differing


def test_a_tied_head_is_tied_here_and_untied_in_a_pretrainer(tmp_path: Path) -> None:
    model = theirs(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    mine = ours.ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert mine(codes()).logits.shape == (2, 16, 9)
    assert_same(mine(codes()), model(codes()))
    mine(codes(), labels=codes()).loss.backward()
    model(codes(), labels=codes()).loss.backward()
    table = model.transformer.wte.weight.grad
    torch.testing.assert_close(mine.transformer.network.codes.weight.grad, table[:-1], rtol=1e-4, atol=1e-5)
    mine.save_pretrained(tmp_path / "again")
    back = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "again")
    assert torch.equal(back(codes()).logits, model(codes()).logits)

    pretrainer = load_imagegpt(tmp_path, tokenizer=Encoded(8))
    ids = codes() % 8
    shifted = torch.cat([torch.full((2, 1), 8), ids[:, :-1]], dim=1)
    found = pretrainer.predictor.project(pretrainer.backbone.model(ids))
    torch.testing.assert_close(found, model(shifted).logits[..., :-1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_unusual_goes_through_a_pretrainer_and_back(tmp_path: Path) -> None:
    config = {**OTHERS[1], **OTHERS[2], "attn_pdrop": 0.2, "embd_pdrop": 0.3, "resid_pdrop": 0.4}
    config |= {"reorder_and_upcast_attn": True}
    model = theirs(**config)
    model.save_pretrained(tmp_path)
    save_imagegpt(load_imagegpt(tmp_path, tokenizer=Encoded(8)), tmp_path / "again")
    back = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "again")
    assert {name: getattr(back.config, name) for name in config} == config
    assert torch.equal(back(codes()).logits, model(codes()).logits)


def test_our_own_classifier_opens_again(tmp_path: Path) -> None:
    model = theirs(CLASSIFIER, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    model.save_pretrained(tmp_path / "theirs")
    classifier = load_imagegpt_classifier(tmp_path / "theirs", tokenizer=Encoded(8))
    save_imagegpt_classifier(classifier, tmp_path / "ours")
    again = load_imagegpt_classifier(tmp_path / "ours", tokenizer=Encoded(8))
    images = (codes() % 8).view(2, 1, 4, 4)
    assert torch.equal(again.classify(images), classifier.classify(images))
    assert ours.ImageGPTForImageClassification.from_pretrained(tmp_path / "theirs").config.id2label[2] == "c"
    theirs(CLASSIFIER, num_labels=3, problem_type="regression").save_pretrained(tmp_path / "numbers")
    with pytest.raises(ValueError, match="a head for regression, and a JointClassifier predicts one class"):
        load_imagegpt_classifier(tmp_path / "numbers", tokenizer=Encoded(8))


def test_what_does_not_fit_is_refused_or_started_anew_with_a_warning(tmp_path: Path) -> None:
    theirs(CLASSIFIER, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="shapes differ for weight"):
        ours.ImageGPTForImageClassification.from_pretrained(tmp_path, num_labels=5)
    with pytest.warns(NoHeadWarning, match="has no head for ImageGPTForImageClassification"):
        model = ours.ImageGPTForImageClassification.from_pretrained(
            tmp_path, num_labels=5, ignore_mismatched_sizes=True, dtype=torch.bfloat16
        )
    assert model.score.weight.shape == (5, 32)
    assert model.dtype == torch.bfloat16
    with pytest.warns(NoHeadWarning, match="has no head for ImageGPTForCausalImageModeling"):
        ours.ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    mine = own(theirs())
    with pytest.raises(ValueError, match="16 positions; the input has 17"):
        mine(codes(length=17))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        mine()
    with pytest.raises(ValueError, match="attends to the image only"):
        mine(codes(), encoder_hidden_states=torch.randn(2, 3, 32))
    with pytest.raises(ValueError, match="max_length or max_new_tokens"):
        mine.generate(codes())
    with pytest.raises(ValueError, match="problem_type is one of"):
        ours.ImageGPTConfig(problem_type="ranking")
    with pytest.raises(ValueError, match="download a model from the hub first"):
        ours.ImageGPTModel.from_pretrained("openai/imagegpt-small")
    index = tmp_path / "index"
    index.mkdir()
    (index / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "../model.safetensors"}}')
    (index / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="which is not in its own folder"):
        load_imagegpt(index, tokenizer=Encoded(8))


def test_new_models_begin_as_theirs_do() -> None:
    """The same spread of every kind of weight, and norms of ones, biases of zeros."""
    config = {**SMALL, "n_embd": 128, "initializer_range": 0.05}
    torch.manual_seed(0)
    other = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**config))
    mine = ours.ImageGPTForCausalImageModeling(ours.ImageGPTConfig(**config)).to_transformers()
    for name, value in other.state_dict().items():
        if name.endswith("weight") and "ln_" not in name:
            assert mine[name].std().item() == pytest.approx(value.std().item(), rel=0.15), name
        else:
            assert torch.equal(mine[name], value), name


def test_a_grid_that_is_no_square_is_read_from_the_processor(tmp_path: Path) -> None:
    from tests.imagegpt.parts import causal

    save_imagegpt(causal(Grid(2, 6)), tmp_path)
    assert load_imagegpt(tmp_path).backbone.image_size == (2, 6)


def _pickle_weights(folder: Path) -> None:
    from safetensors.torch import load_file

    for file in list(folder.glob("*.safetensors")):
        torch.save(load_file(file), folder / file.name.replace("model", "pytorch_model").replace("safetensors", "bin"))
        file.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()
