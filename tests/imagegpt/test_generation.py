"""Drawing: what is drawn has the network's probabilities, with or without the cache, in any batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from patchcast.backbones.backbone import CannotError
from patchcast.backbones.imagegpt_network import Cache, ImageGPT, ImageGPTBackbone
from patchcast.drawing.generation import choose, complete, parts, sample
from patchcast.drawing.sheets import save_drawing, save_grid
from patchcast.geometry import Grid
from patchcast.methods import aim
from patchcast.methods.imagegpt import imagegpt
from patchcast.pretrainer import Pretrainer
from tests import contracts
from tests.imagegpt.parts import SQUARE, causal, grays, masked, network


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def drawer() -> Pretrainer:
    """A network whose probabilities are far from even."""
    pretrainer = contracts.perturbed(causal())
    with torch.no_grad():
        pretrainer.predictor.project.weight.mul_(5)
    return pretrainer.eval()


@torch.no_grad()
def drawn_without_cache(pretrainer: Pretrainer, count: int, **options: Any) -> Tensor:
    model, head = parts(pretrainer)
    units = model.grid.units
    chance = torch.rand(count, units, generator=seeded())
    ids = torch.zeros(count, units, dtype=torch.long)
    for place in range(units):
        ids[:, place] = choose(head(model(ids))[:, place], chance[:, place], **options)
    return ids


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.0}])
def test_the_cache_changes_nothing(drawer: Pretrainer, options: dict[str, Any]) -> None:
    drawn = sample(drawer, 20, generator=seeded(), **options)
    assert torch.equal(drawn, drawn_without_cache(drawer, 20, **options))
    assert len(drawn.unique()) > 1


@torch.no_grad()
def test_cached_logits_are_those_of_the_whole_to_rounding(drawer: Pretrainer) -> None:
    """Other kernels run on one row than on all, so that float32 differs in its last bits and float64 far less."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        model, head = parts(drawer.to(dtype))
        ids = sample(drawer, 8, generator=seeded())
        cache, steps = Cache(model, 8), []
        for place in range(16):
            latest = ids[:, place - 1 : place] if place else ids[:, :0]
            steps.append(head(model.extend(latest, cache)))
        torch.testing.assert_close(torch.cat(steps, dim=1), head(model(ids)), rtol=0, atol=tolerance)


def test_images_are_the_same_in_any_batches_and_for_the_same_seed(drawer: Pretrainer) -> None:
    whole = sample(drawer, 10, generator=seeded())
    assert torch.equal(whole, sample(drawer, 10, generator=seeded(), batch_size=3, progress=True))
    assert not torch.equal(whole, sample(drawer, 10, generator=seeded(1)))
    torch.manual_seed(5)
    first = sample(drawer, 4)
    torch.manual_seed(5)
    assert torch.equal(first, sample(drawer, 4))


def test_the_first_pixels_have_the_probabilities_of_the_network(drawer: Pretrainer) -> None:
    model, head = parts(drawer)
    count = 4000
    ids = sample(drawer, count, generator=seeded(), batch_size=count)[:, :2]
    with torch.no_grad():
        first = head(model(torch.zeros(1, 16, dtype=torch.long)))[0, 0].softmax(-1)
        common = int(first.argmax())
        second = head(model(torch.full((1, 16), common)))[0, 1].softmax(-1)
    for probability, codes in ((first, ids[:, 0]), (second, ids[ids[:, 0] == common, 1])):
        found = codes.bincount(minlength=8) / len(codes)
        error = (probability * (1 - probability) / len(codes)).sqrt()
        assert ((found - probability).abs() < 4 * error + 1e-9).all()


def test_drawing_leaves_the_network_as_it_was(drawer: Pretrainer) -> None:
    drawer.train()
    before = {name: value.clone() for name, value in drawer.state_dict().items()}
    ids = sample(drawer, 2, generator=seeded())
    assert drawer.training
    assert all(torch.equal(value, before[name]) for name, value in drawer.state_dict().items())
    drawer.target.tokenizer.decode(ids, Grid(4, 4))
    encoded = torch.nn.functional.embedding(ids, drawer.backbone.model.codes.weight)
    encoded.sum().backward()  # what inference mode makes would refuse this


@pytest.mark.parametrize("prefix", [0, 1, 8, 15, 16])
def test_completions_keep_the_prefix_and_differ_beyond_it(drawer: Pretrainer, prefix: int) -> None:
    images = contracts.images_for(drawer, batch=3)
    ids = drawer.backbone.tokenizer.encode(images)
    drawn = complete(drawer, images, prefix, copies=4, generator=seeded(), batch_size=5)
    assert drawn.shape == (3, 4, 16)
    assert torch.equal(drawn[:, :, :prefix], ids[:, None, :prefix].expand(-1, 4, -1))
    if prefix <= 8:
        assert all(len(copies.unique(dim=0)) == 4 for copies in drawn)


def test_a_completion_from_nothing_is_a_sample(drawer: Pretrainer) -> None:
    images = contracts.images_for(drawer, batch=5)
    assert torch.equal(complete(drawer, images, 0, generator=seeded())[:, 0], sample(drawer, 5, generator=seeded()))


def test_the_most_likely_completion_is_what_the_network_finds_most_likely(drawer: Pretrainer) -> None:
    images = contracts.images_for(drawer)
    drawn = complete(drawer, images, 6, temperature=0.0)[:, 0]
    model, head = parts(drawer)
    assert torch.equal(head(model(drawn)).argmax(-1)[:, 6:], drawn[:, 6:])


def test_choosing() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log()
    even = torch.arange(1000) / 1000

    def shares(**options: Any) -> list[float]:
        codes = choose(logits.expand(1000, -1), even, **options)
        return (codes.bincount(minlength=4) / 1000).tolist()

    assert shares() == pytest.approx([0.5, 0.0, 0.3, 0.2], abs=2e-3)
    assert shares(top_k=2) == pytest.approx([0.625, 0.0, 0.375, 0.0], abs=2e-3)
    assert shares(top_k=9) == shares()
    assert shares(top_p=0.6) == pytest.approx([0.625, 0.0, 0.375, 0.0], abs=2e-3)
    assert shares(top_p=0.1) == [1.0, 0.0, 0.0, 0.0]
    assert shares(temperature=0.5) == pytest.approx([25 / 38, 0.0, 9 / 38, 4 / 38], abs=2e-3)
    assert shares(temperature=0.0) == [1.0, 0.0, 0.0, 0.0]
    last = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    ruled_out = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert choose(ruled_out, torch.zeros(1)).item() == 1
    assert choose(ruled_out, last).item() == 2
    flat = torch.zeros(1, 4096)
    assert choose(flat, last).item() == 4095


def test_any_tokenizers_codes_can_be_drawn() -> None:
    """A learned vocabulary in place of the palette: units of 2x2 pixels."""

    class Brightness(torch.nn.Module):
        vocabulary = 8

        def encode(self, images: Tensor) -> Tensor:
            mean = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 2)
            return ((mean + 1) * 4).long().clamp(0, 7).flatten(1)

        def decode(self, ids: Tensor, grid: Grid) -> Tensor:
            return (ids * 36).to(torch.uint8).view(-1, 1, *grid).repeat_interleave(2, 2).repeat_interleave(2, 3)

    backbone = ImageGPTBackbone(network(), Brightness(), channels=3, stride=(2, 2))
    pretrainer = contracts.perturbed(imagegpt(backbone))
    contracts.check_no_leak(pretrainer)
    assert backbone.image_size == (8, 8)
    images = contracts.images_for(pretrainer)
    assert pretrainer(images).predictions.shape == (2, 1, 16, 8)
    ids = complete(pretrainer, images, 8)[:, 0]
    assert torch.equal(ids[:, :8], Brightness().encode(images)[:, :8])
    assert Brightness().decode(ids, Grid(4, 4)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("columns", [None, 2])
def test_a_grid_of_images(tmp_path: Path, columns: int | None) -> None:
    images = torch.randint(255, (5, 3, 4, 4), dtype=torch.uint8)
    save_grid(images, tmp_path / "grid.png", columns=columns, scale=3)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == ((38, 25) if columns is None else (25, 38))
        assert picture.getpixel((0, 0)) == tuple(images[0, :, 0, 0].tolist())
        assert picture.getpixel((13 + 11, 0)) == tuple(images[1, :, 0, 3].tolist())
        assert picture.getpixel((12, 5)) == (255, 255, 255)
    save_grid(images[:, :1], tmp_path / "gray.png")
    with Image.open(tmp_path / "gray.png") as picture:
        assert picture.mode == "L"


def test_the_drawing_order_as_a_film(tmp_path: Path) -> None:
    palette = grays()
    ids = torch.full((1, 16), 7)
    save_drawing(ids, palette, Grid(4, 4), tmp_path / "film.gif", frames=16, scale=1)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 17
        whites = []
        for frame in range(17):
            film.seek(frame)
            whites.append(sum(level == 255 for level in film.convert("L").tobytes()))
    assert whites == list(range(17))


def test_what_cannot_be_drawn_is_refused_in_one_sentence(drawer: Pretrainer) -> None:
    with pytest.raises(CannotError, match="cannot draw images code by code"):
        sample(masked(), 1)
    regression = aim(ImageGPTBackbone(network(causal=False), grays(), channels=1), normalize=False)
    with pytest.raises(CannotError, match="cannot draw images code by code"):
        sample(regression, 1)
    with pytest.raises(ValueError, match=r"got -1\.0, None and None"):
        sample(drawer, 1, temperature=-1.0)
    with pytest.raises(ValueError, match=r"got 1\.0, 0 and None"):
        sample(drawer, 1, top_k=0)
    with pytest.raises(ValueError, match=r"got 1\.0, None and 1\.5"):
        sample(drawer, 1, top_p=1.5)
    with pytest.raises(ValueError, match="has 16 codes; got a prefix of 17"):
        complete(drawer, contracts.images_for(drawer), 17)
    with pytest.raises(ValueError, match="takes 1 channels; got 3"):
        complete(drawer, torch.zeros(1, 3, 4, 4), 8)


def test_drawing_drops_nothing() -> None:
    """In whatever mode the pretrainer is; and leaves the mode as it was."""
    model = ImageGPT(SQUARE, 8, depth=2, width=32, heads=4, embed_drop=0.5, attn_drop=0.5, proj_drop=0.5)
    pretrainer = contracts.perturbed(imagegpt(ImageGPTBackbone(model, grays(), channels=1)))
    drawn = []
    for mode in (True, False):
        pretrainer.train(mode)
        drawn.append(sample(pretrainer, 4, generator=torch.Generator().manual_seed(0)))
        assert pretrainer.training == pretrainer.backbone.model.embed_drop.training == mode
    assert torch.equal(*drawn)
