"""The network and both its objectives, held to the contracts of every method, and to what the paper says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from patchcast.backbones.backbone import CannotError
from patchcast.backbones.imagegpt_network import IMAGEGPT_SIZES, Cache, ImageGPT, ImageGPTBackbone
from patchcast.geometry import Grid
from patchcast.honesty import dependencies
from patchcast.losses import cross_entropy
from patchcast.methods import aim
from patchcast.methods.imagegpt import hidden_to_the_nearest, imagegpt, imagegpt_masked
from patchcast.plans import FromStart, RandomMask, StartPlan
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Codes
from patchcast.tokenizers.encoded import Encoded
from tests import contracts
from tests.imagegpt.parts import causal, grays, masked, network

METHODS: dict[str, Callable[[], Pretrainer]] = {
    "causal": causal,
    "causal, with biases": lambda: causal(bias=True),
    "causal, not square": lambda: causal(Grid(2, 6)),
    "masked": masked,
    "AIM over the masked network": lambda: aim(
        ImageGPTBackbone(network(causal=False), grays(), channels=1), head_depth=0, normalize=False
    ),
}
GOLDEN = {"causal": 2.0891457, "masked": 1.9833150}
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
def test_no_leak(method: str) -> None:
    contracts.check_no_leak(METHODS[method]())


@pytest.mark.parametrize("method", ["causal", "masked"])
def test_noise_floor(method: str) -> None:
    contracts.check_noise_floor(METHODS[method]())


@every_method
def test_gradients(method: str) -> None:
    contracts.check_gradients(METHODS[method]())


@every_method
def test_save_and_load(method: str) -> None:
    contracts.check_save_and_load(METHODS[method](), METHODS[method]())


@every_method
def test_modes(method: str) -> None:
    contracts.check_modes(METHODS[method]())


@every_method
def test_gradient_checkpointing(method: str) -> None:
    contracts.check_gradient_checkpointing(METHODS[method]())


@pytest.mark.parametrize("method", GOLDEN)
def test_golden_loss(method: str) -> None:
    assert contracts.golden(METHODS[method]()) == pytest.approx(GOLDEN[method], rel=1e-5)


class Unmoved(ImageGPT):
    """A planted bug: codes are not moved on, so that each place sees the code that it predicts."""

    def place(self, x: Tensor) -> Tensor:
        return x + self.positions + 0 * self.start


def test_a_network_that_does_not_shift_is_condemned() -> None:
    def planted() -> Pretrainer:
        return imagegpt(ImageGPTBackbone(Unmoved(Grid(4, 4), 8, depth=2, width=32, heads=4), grays(), channels=1))

    with pytest.raises(AssertionError, match="copies its answer"):
        contracts.check_noise_floor(planted())
    with pytest.raises(AssertionError, match="may not use"):
        contracts.check_no_leak(planted())


@pytest.mark.parametrize("method", ["causal", "masked"])
def test_dependencies_are_found_through_codes(method: str) -> None:
    pretrainer = contracts.perturbed(METHODS[method]())
    images = contracts.images_for(pretrainer)
    found, allowed = dependencies(pretrainer, images, pretrainer.draw(images, torch.Generator().manual_seed(0)))
    predicted = ~found.isnan().any(dim=1)
    assert predicted.sum() == (16 if method == "causal" else 2)
    assert not (found[predicted] > 0)[~allowed[predicted]].any()
    assert (found[predicted] > 0)[allowed[predicted]].float().mean() > 0.5


def test_every_pixel_is_predicted_and_the_last_is_never_fed() -> None:
    pretrainer = contracts.perturbed(causal())
    images = contracts.images_for(pretrainer)
    output = pretrainer(images)
    assert output.predictions.shape == (2, 1, 16, 8)
    last = images.clone()
    last[:, :, -1, -1] *= -1
    assert torch.equal(pretrainer(last).predictions, output.predictions)
    assert not torch.equal(pretrainer(last).targets, output.targets)


def test_the_loss_starts_at_the_logarithm_of_the_vocabulary() -> None:
    pretrainer = causal()
    assert pretrainer(contracts.images_for(pretrainer)).loss.item() == pytest.approx(torch.tensor(8.0).log().item())


def test_masked_pixels_are_zeros_and_nothing_else_is() -> None:
    """The published code multiplies the embeddings by the mask, before positions are added."""
    pretrainer = contracts.perturbed(masked())
    backbone, images = pretrainer.backbone, contracts.images_for(pretrainer)
    plan = pretrainer.draw(images, torch.Generator().manual_seed(0))
    embedded = backbone.model.codes(backbone.tokenizer.encode(images))
    embedded[plan.is_hidden.flatten(1)] = 0
    expected = backbone.model.run(embedded + backbone.model.positions)
    torch.testing.assert_close(pretrainer.view(backbone, images, plan).units, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "millions"), [("S", 76.57), ("M", 455.16), ("L", 1362.25), ("XL", 6801.4)])
def test_sizes_have_the_papers_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        size = IMAGEGPT_SIZES[name]
        model = ImageGPT(Grid(32, 32), 512, **size._asdict())
    count = sum(each.numel() for each in model.parameters()) + 512 * size.width
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_initialization_is_the_published_codes() -> None:
    model = ImageGPT(Grid(16, 16), 256, depth=3, width=128, heads=4)
    stds = {
        "codes.weight": 0.02,
        "positions": 0.01,
        "blocks.1.attn.qkv.weight": 128**-0.5,
        "blocks.1.attn.proj.weight": (128 * 3) ** -0.5,
        "blocks.2.mlp.fc1.weight": 0.02,
        "blocks.2.mlp.fc2.weight": 0.02,
    }
    for name, std in stds.items():
        assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.03), name
    assert imagegpt(ImageGPTBackbone(model, Encoded(256), channels=1)).predictor.project.weight.abs().max() == 0


@pytest.mark.slow
def test_compiled_without_a_graph_break_it_gives_the_same_numbers() -> None:
    """In a process of its own: the shape checks of the test suite break `torch.compile`."""
    code = """
import torch
from patchcast.geometry import Grid
from patchcast.backbones.imagegpt_network import ImageGPT
for causal in (True, False):
    network = ImageGPT(Grid(4, 4), 8, depth=2, width=32, heads=4, causal=causal)
    ids = torch.randint(8, (2, 16))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids), network(ids))
print("compiled")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "compiled", done.stderr


def test_layers_are_the_inputs_of_attention() -> None:
    model = contracts.perturbed(network())
    ids = torch.randint(8, (2, 16))
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    output = model(ids)
    inputs = [*seen, output]
    for layer, inside in zip(model.layers(ids), inputs, strict=True):
        assert torch.equal(layer, inside)


@pytest.mark.parametrize("pieces", [[0] + [1] * 15, [15], [4, 1, 10], [0, 7, 8]])
def test_a_cache_gives_the_features_of_the_whole(pieces: list[int]) -> None:
    """In double precision, where rounding cannot hide a wrong mask or a wrong position."""
    model = contracts.perturbed(network()).double().eval()
    ids = torch.randint(8, (3, 16))
    cache, features, at = Cache(model, 3), [], 0
    for piece in pieces:
        features.append(model.extend(ids[:, at : at + piece], cache))
        at += piece
    torch.testing.assert_close(torch.cat(features, dim=1), model(ids), rtol=0, atol=1e-13)


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="divisible by its heads; got 32 and 5"):
        ImageGPT(Grid(4, 4), 8, depth=1, width=32, heads=5)
    with pytest.raises(ValueError, match="8 codes and the tokenizer 16"):
        ImageGPTBackbone(network(), grays(16), channels=1)
    backbone = ImageGPTBackbone(network(), grays(), channels=1)
    with pytest.raises(ValueError, match="this ImageGPT takes 4x4 only; got 8x8"):
        backbone.units(torch.zeros(1, 1, 8, 8))
    with pytest.raises(CannotError, match="replace hidden units by a mask token"):
        imagegpt_masked(backbone)
    with pytest.raises(CannotError, match="from a start token"):
        imagegpt(ImageGPTBackbone(network(causal=False), grays(), channels=1))
    with pytest.raises(CannotError, match="any attention mask"):
        backbone.forward_stages(backbone.embed(torch.zeros(1, 1, 4, 4)), can_see=torch.ones(16, 16, dtype=torch.bool))


def test_codes_of_integer_images_train_the_same_network() -> None:
    pretrainer = contracts.perturbed(causal())
    images = contracts.images_for(pretrainer)
    encoded = imagegpt(ImageGPTBackbone(pretrainer.backbone.model, Encoded(8), channels=1))
    encoded.load_state_dict(pretrainer.state_dict())
    ids = pretrainer.backbone.tokenizer.encode(images).view(2, 1, 4, 4).to(torch.int16)
    assert torch.equal(encoded(ids).loss, pretrainer(images).loss)


def test_cross_entropy_of_codes() -> None:
    prediction, target = torch.randn(2, 1, 5, 7), torch.randint(7, (2, 1, 5, 1))
    expected = -prediction.log_softmax(-1).gather(-1, target)[..., 0]
    torch.testing.assert_close(cross_entropy(prediction, target), expected)


def test_blind_codes_are_their_frequencies() -> None:
    target = torch.tensor([0, 0, 0, 2]).view(1, 1, 4, 1)
    blind = Codes(grays(3)).blind(target)
    torch.testing.assert_close(blind.softmax(-1)[0, 0, 0], torch.tensor([0.75, 0, 0.25]))


def test_the_start_plan_uses_only_what_came_before() -> None:
    plan = FromStart()(Grid(2, 3), 4)
    assert isinstance(plan, StartPlan)
    assert plan.predict.shape == (4, 1, 6)
    assert torch.equal(plan.may_use()[0, 0].sum(-1), torch.arange(6))
    assert not plan.may_use().gather(-1, plan.predict[..., None]).any()
    assert masked().plan == RandomMask(0.15, count=hidden_to_the_nearest)
