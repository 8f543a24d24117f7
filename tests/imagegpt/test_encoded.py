"""Codes on disk, floors by counting, probes by layer, and the joint loss."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from patchcast.backbones.backbone import CannotError
from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.data import EpochSampler, EvalSet, Evaluate, TrainSet, loader, open_images
from patchcast.drawing.generation import complete, sample
from patchcast.evaluation import few_labels, finetune, layer_decay_groups, linear_probe
from patchcast.evaluation.layer_probe import draw_layers, extract_imagegpt_layers, probe_layers
from patchcast.evaluation.ngrams import bits_per_pixel, floors
from patchcast.geometry import Grid
from patchcast.joint import JointClassifier
from patchcast.methods import mae
from patchcast.methods.imagegpt import imagegpt, imagegpt_masked, on_codes
from patchcast.tokenizers import encoded
from patchcast.tokenizers.encoded import CodeSet, Encoded, Mirror, Unchanged, encode_images
from patchcast.tokenizers.palette import Palette, fit_palette
from patchcast.tokenizers.patches import PatchCodebook
from tests import contracts
from tests.imagegpt.parts import causal, grays, masked, network

EVALUATE = Evaluate((8, 8), (0.5,), (0.5,))
GRID = Grid(8, 8)


@pytest.fixture(scope="module")
def palette() -> Palette:
    return fit_palette(open_images("digits"), 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the digits' codes are stored: encoded by the first test that needs them, read by the others."""
    return tmp_path_factory.mktemp("codes")


@pytest.fixture
def codes(palette: Palette, folder: Path) -> CodeSet:
    return encode_images(open_images("digits"), palette, EVALUATE, GRID, folder=folder)


@pytest.fixture
def held_out(palette: Palette, folder: Path) -> CodeSet:
    return encode_images(open_images("digits", split="test"), palette, EVALUATE, GRID, folder=folder)


def test_codes_are_those_of_the_pixels(codes: CodeSet, palette: Palette) -> None:
    digits = open_images("digits")
    assert codes.codes.dtype == np.uint8
    assert isinstance(codes.codes, np.memmap)
    for index in (0, 255, 256, 1436):  # at the borders of batches
        image, label = digits[index]
        ids, found = codes[index]
        assert torch.equal(ids.view(1, -1), palette.encode(image[None]))
        assert found == label


def test_codes_are_encoded_once_and_anew_for_another_palette(
    palette: Palette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = open_images("digits")
    counted: list[int] = []
    original = encoded._encode

    def counting(images: object, index: object, *rest: object) -> object:
        counted.append(len(index))
        return original(images, index, *rest)

    monkeypatch.setattr(encoded, "_encode", counting)
    first = encode_images(digits, palette, EVALUATE, GRID, folder=tmp_path)
    assert sum(counted) == 64 + 1437
    counted.clear()
    again = encode_images(digits, palette, EVALUATE, GRID, folder=tmp_path)
    assert counted == [64]
    assert np.array_equal(first.codes, again.codes)
    other = encode_images(digits, grays(300 // 2), EVALUATE, GRID, folder=tmp_path)
    assert not np.array_equal(first.codes, other.codes)
    many = Palette(torch.linspace(-1, 1, 300)[:, None])
    assert encode_images(digits, many, EVALUATE, GRID, folder=tmp_path).codes.dtype == np.uint16
    assert len(list(tmp_path.glob("*.npy"))) == 6


def batches(codes: CodeSet, steps: int, *, size: int = 32, start: int = 0, flip: bool = False) -> list[list[Tensor]]:
    sampler = EpochSampler(len(codes), size, seed=1, steps=steps, start_step=start)
    return list(loader(TrainSet(codes, Mirror() if flip else Unchanged(), seed=3), sampler, workers=0))


def test_batches_are_a_function_of_seed_and_step(codes: CodeSet) -> None:
    whole, rest = (batches(codes, 20, size=100, start=start, flip=True) for start in (0, 15))
    assert all(torch.equal(one[0], two[0]) for one, two in zip(whole[15:], rest, strict=True))
    plain = batches(codes, 20, size=100)
    is_same = torch.cat([(one[0] == two[0]).flatten(1).all(1) for one, two in zip(whole, plain, strict=True)])
    assert 0.4 < is_same.float().mean() < 0.6
    mirrored = [one[0].flip(-1) for one in plain]
    assert all(
        ((one[0] == two[0]).flatten(1).all(1) | (one[0] == three).flatten(1).all(1)).all()
        for one, two, three in zip(whole, plain, mirrored, strict=True)
    )
    keys = EpochSampler(len(codes), 100, seed=1, steps=1).batch(0)
    assert torch.equal(plain[0][0][7], codes[keys[7][1]][0])
    assert plain[0][1][7] == codes.labels[keys[7][1]]


def test_mirrored_codes_are_those_of_mirrored_images(codes: CodeSet, palette: Palette) -> None:
    """What training sees is what encoding the augmented image would have given."""
    image, _ = open_images("digits")[5]
    ids, _ = codes[5]
    assert torch.equal(Mirror()(ids, 1).view(1, -1), palette.encode(EVALUATE(image.flip(-1))[None]))
    assert torch.equal(Mirror()(ids, 2), ids)


def test_codes_that_are_read_many_times_come_into_memory(codes: CodeSet) -> None:
    assert isinstance(codes.codes, np.memmap)
    before = codes[3][0]
    batches(codes, 1, size=100)
    assert isinstance(codes.codes, np.memmap), "one batch is not worth it"
    batches(codes, 30, size=100)
    assert not isinstance(codes.codes, np.memmap)
    assert torch.equal(codes[3][0], before)


def test_a_network_learns_digits_below_both_floors(codes: CodeSet, held_out: CodeSet) -> None:
    """From ln 16 to below what counting pairs of pixels gives, in 60 steps."""
    floor = floors(codes.ids(), held_out.ids(), 16)
    assert floor.uniform > floor.unigram > floor.bigram
    model = ImageGPT(GRID, 16, depth=1, width=32, heads=4)
    trainer = imagegpt(ImageGPTBackbone(model, Encoded(16), channels=1))
    optimizer = torch.optim.Adam(trainer.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for ids, _ in batches(codes, 60, size=16):
        loss = trainer(ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert trainer(held_out.ids().view(-1, 1, 8, 8)).loss < floor.bigram


def test_floors_are_what_the_counts_say() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 4000, True, generator=generator)
    steps = torch.multinomial(torch.tensor([0.9, 0.1]), 4000 * 9, True, generator=generator).view(4000, 9)
    ids = (torch.cat([first[:, None], steps], dim=1).cumsum(1)) % 3
    found = floors(ids[:3000], ids[3000:], 3)
    chain = 0.9 * np.log(1 / 0.9) + 0.1 * np.log(10)  # of each code but the first, given the one before
    start = -np.log(np.bincount(ids[:3000].flatten(), minlength=3) / 30000)[ids[3000:, 0]].mean()
    assert found.uniform == pytest.approx(np.log(3))
    assert found.bigram == pytest.approx((9 * chain + start) / 10, abs=0.01)
    shares = np.bincount(ids.flatten(), minlength=3) / ids.numel()
    assert found.unigram == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.01)
    assert bits_per_pixel(np.log(2), pixels_per_code=4) == pytest.approx(0.25)


def test_a_codes_that_never_occurred_costs_something_finite() -> None:
    found = floors(torch.zeros(4, 8, dtype=torch.long), torch.full((1, 8), 2), 3)
    assert np.isfinite([found.unigram, found.bigram]).all()
    assert found.unigram > found.uniform


@pytest.fixture(scope="module")
def labeled() -> tuple[DataLoader, DataLoader]:
    """Every fourth training image, and every second test image."""
    sets = {step: EvalSet(open_images("digits", split=split), EVALUATE) for split, step in (("train", 4), ("test", 2))}
    return tuple(DataLoader(Subset(each, range(0, len(each), step)), 100) for step, each in sets.items())


def test_layers_are_the_papers_features_and_can_be_probed(
    labeled: tuple[DataLoader, DataLoader], palette: Palette
) -> None:
    backbone = ImageGPTBackbone(ImageGPT(GRID, 16, depth=2, width=32, heads=4), palette, channels=1)
    backbone.train()
    train, test = (extract_imagegpt_layers(backbone, loader) for loader in labeled)
    assert backbone.training
    assert list(train) == [0, 1, 2]
    images = torch.cat([images for images, _ in labeled[1]])
    with torch.no_grad():
        h = backbone.model.place(backbone.model.codes(palette.encode(images)))
        for layer, block in enumerate(backbone.model.blocks):
            torch.testing.assert_close(test[layer].x, block.norm1(h).mean(1), rtol=0, atol=1e-5)
            h = block(h, is_causal=True)
        torch.testing.assert_close(test[2].x, backbone.pool(images, "mean"), rtol=0, atol=1e-5)
    results = probe_layers(train, test)
    assert results[1].accuracy == linear_probe(train[1], test[1]).accuracy
    assert results[0].accuracy > 0.3
    assert [row.per_class for row in few_labels(train[1], test[1], per_class=(1, 4), draws=3)] == [1, 4]
    figure = draw_layers({"untrained": {layer: each.accuracy for layer, each in results.items()}}, title="digits")
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == pytest.approx([100 * each.accuracy for each in results.values()])
    with pytest.raises(ValueError, match="no images"):
        extract_imagegpt_layers(backbone, [])


def test_the_joint_loss_is_the_sum_of_both_and_trains_everything(palette: Palette) -> None:
    pretrainer = contracts.perturbed(causal(GRID, 16))
    model = JointClassifier(pretrainer, classes=10)
    torch.nn.init.normal_(model.head.weight)
    images, labels = contracts.images_for(pretrainer, batch=6), torch.arange(6)
    output = model(images, labels)
    assert torch.equal(output.generation, pretrainer(images).loss)
    features = pretrainer.backbone.units(images).mean(1)
    torch.testing.assert_close(output.logits, features @ model.head.weight.T)
    torch.testing.assert_close(output.logits, model.classify(images))
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.loss, output.generation + expected)
    output.loss.backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in model.parameters())


def test_the_joint_classifier_learns_digits(codes: CodeSet) -> None:
    torch.manual_seed(0)
    model = JointClassifier(
        imagegpt(ImageGPTBackbone(ImageGPT(GRID, 16, depth=1, width=32, heads=4), Encoded(16), channels=1)), 10
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for ids, labels in batches(codes, 200, size=16):
        output = model(ids, labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    found = model.classify(codes.ids(slice(0, 300)).view(-1, 1, 8, 8)).argmax(1)
    assert (found.numpy() == codes.labels[:300]).mean() > 0.6
    assert output.generation < 1.9


def test_a_palette_first_used_for_probing_can_train_afterwards() -> None:
    """What is built in inference mode must not stay behind."""
    colors = Palette(torch.tensor([[-1.0], [0.0], [1.0]]))
    pretrainer = imagegpt(ImageGPTBackbone(network(k=3), colors, channels=1))
    images = contracts.images_for(pretrainer)
    with torch.inference_mode():
        pretrainer(images)
    contracts.perturbed(pretrainer)(images).loss.backward()
    assert pretrainer.backbone.model.codes.weight.grad.abs().max() > 0


def test_what_does_not_fit_is_refused_in_one_sentence(palette: Palette, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encode images with their own tokenizer"):
        Encoded(16).encode(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="gives 64 codes for an image; a 4x4 grid has 16"):
        encode_images(open_images("digits"), palette, EVALUATE, Grid(4, 4), folder=tmp_path)
    with pytest.raises(ValueError, match="no images to encode"):
        encode_images([], palette, EVALUATE, GRID, folder=tmp_path)
    from patchcast.backbones import wrap

    with pytest.raises(CannotError, match="Drop leaves units out"):
        JointClassifier(mae(wrap("test_vit", img_size=32)), 10)
    assert JointClassifier(masked(), 10).classify(torch.zeros(2, 1, 4, 4)).shape == (2, 10)


def test_finetuning_learns_digits_and_leaves_the_backbone_alone(palette: Palette) -> None:
    """With learning rates that fall from block to block, which needs to know which parameter is of which."""
    backbone = ImageGPTBackbone(ImageGPT(GRID, 16, depth=2, width=32, heads=4), palette, channels=1)
    digits, test = (EvalSet(open_images("digits", split=split), EVALUATE) for split in ("train", "test"))
    before = {name: each.clone() for name, each in backbone.state_dict().items()}
    run = DataLoader(digits, 24, shuffle=True)
    result = finetune(backbone, run, DataLoader(test, 180), classes=10, lr=1e-2)
    assert result.accuracy > 0.3
    assert all(torch.equal(before[name], each) for name, each in backbone.state_dict().items())
    groups = layer_decay_groups(result.model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    names = {id(each): name for name, each in result.model.named_parameters()}
    rates = {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}
    assert len(rates) == len(names)
    assert rates["backbone.model.positions"] == rates["backbone.model.codes.weight"] == (0.5**3, 0.0)
    assert rates["backbone.model.blocks.0.attn.qkv.weight"] == (0.5**2, 0.1)
    assert rates["backbone.model.norm.weight"] == (0.5, 0.0)


def test_the_masked_objective_learns_digits(codes: CodeSet, held_out: CodeSet, palette: Palette) -> None:
    """From ln 16 to below what the pixel before alone would say, in 100 steps: most of a digit is in its neighbors."""
    model = ImageGPT(GRID, 16, depth=1, width=32, heads=4, causal=False)
    trainer = on_codes(imagegpt_masked(ImageGPTBackbone(model, palette, channels=1)))
    optimizer = torch.optim.Adam(trainer.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for ids, _ in batches(codes, 100, size=16):
        loss = trainer(ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss = trainer(held_out.ids().view(-1, 1, 8, 8), generator=torch.Generator().manual_seed(0)).loss
    assert loss < floors(codes.ids(), held_out.ids(), 16).bigram


def test_other_codes_in_the_place_of_the_palette() -> None:
    """A codebook of 2x2 squares: a quarter of the places, and the same training and drawing."""
    digits = open_images("digits")
    images = torch.stack([EVALUATE(digits[i].image) for i in range(len(digits))])
    codebook = PatchCodebook.fit([images], stride=(2, 2), vocabulary=64, normalize=False)
    grid = Grid(4, 4)
    network = ImageGPT(grid, 64, depth=2, width=64, heads=4)
    pretrainer = imagegpt(ImageGPTBackbone(network, codebook, channels=1, stride=(2, 2)))
    contracts.check_no_leak(copy.deepcopy(pretrainer))
    optimizer = torch.optim.Adam(pretrainer.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for batch in images.split(64) * 3:
        loss = pretrainer(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids = codebook.encode(images)
    assert loss < floors(ids[:1000], ids[1000:], 64).bigram
    pictures = codebook.decode(sample(pretrainer, 5), grid)
    assert pictures.shape == (5, 1, 8, 8)
    assert pictures.dtype == torch.uint8
    kept = complete(pretrainer, images[:3], 8, copies=2)
    assert torch.equal(kept[:, 0, :8], ids[:3, :8])
    squares = (codebook.centres.view(64, 1, 2, 2) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(codebook.decode(torch.tensor([[3]]), Grid(1, 1)), squares[3:4])
    with pytest.raises(ValueError, match="fit with normalize=False"):
        PatchCodebook(torch.zeros(2, 4), (2, 2)).decode(torch.tensor([[0]]), Grid(1, 1))
