"""Augmenting a batch at once gives what augmenting image by image gives. On the CPU: there was no GPU to try it on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from patchcast.data import Augment, Cutter, EpochSampler, TrainSet, batched, finish, loader, open_images
from patchcast.data.batched import collate, resampling
from patchcast.data.transforms import resize
from patchcast.training.engine import Engine
from patchcast.training.log import curve
from patchcast.training.loop import train
from patchcast.training.optimization import Optimization
from patchcast.training.stream import Stream
from tests.training.test_run import tiny

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def photos(kind: torch.dtype) -> list[torch.Tensor]:
    """Smooth noise, of different sizes; one so large that its crops are resized before they travel."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows, cols in [(40, 60), (24, 24), (70, 33), (20, 90), (400, 300), (9, 11)]:
        coarse = torch.rand(3, rows // 4 + 1, cols // 4 + 1, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse[None], (rows, cols), mode="bilinear")[0]
        image = (smooth + 0.1 * torch.rand(3, rows, cols, generator=generator)).clamp(0, 1)
        found.append((image * 255).round().to(torch.uint8) if kind == torch.uint8 else image)
    return found


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [None, (0.08, 1.0)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_batch_is_augmented_as_its_images_are(
    kind: torch.dtype, scale: tuple[float, float] | None, flip: bool
) -> None:
    augment = Augment((24, 32), scale, flip, MEAN, STD)
    keys = [(image, seed) for image in photos(kind) for seed in range(8)]
    alone = torch.stack([augment(image, seed) for image, seed in keys])
    cuts, labels = collate([(Cutter(augment)(image, seed), seed) for image, seed in keys])
    together = finish(augment, cuts)
    assert labels.tolist() == [seed for _, seed in keys]
    assert cuts.is_flipped.any() == flip
    levels = (together - alone).abs() * torch.tensor(STD)[:, None, None] * 255
    if kind == torch.uint8:  # torch's weights for bytes have 16 bits or less: some values are rounded the other way
        assert levels.max() < 2.01
        assert (levels > 0.5).float().mean() < 0.02
    else:
        assert levels.max() < 0.01


@pytest.mark.parametrize("images_at_once", [0, 5, 47])
def test_a_batch_that_is_resized_in_pieces_is_the_same(images_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time too, where a single one has more values than are resized at once."""
    augment = Augment((24, 32), (0.08, 1.0), True, MEAN, STD)
    keys = [(image, seed) for image in photos(torch.float32) for seed in range(8)]
    cuts, _ = collate([(Cutter(augment)(image, seed), seed) for image, seed in keys])
    whole = finish(augment, cuts)
    monkeypatch.setattr(batched, "VALUES_AT_ONCE", images_at_once * cuts.pixels[0].numel())
    pieces = finish(augment, cuts)
    assert pieces.shape == whole.shape
    assert (pieces - whole).abs().max() < 1e-4


@pytest.mark.parametrize(("long", "short"), [(50, 7), (7, 50), (24, 24), (3, 2)])
def test_resampling_is_torchs(long: int, short: int) -> None:
    line = torch.rand(1, 1, long, dtype=torch.float32)
    ours = resampling(torch.tensor([long]), long + 5, short)[0, :, :long] @ line[0, 0]
    assert torch.allclose(ours, resize(line.expand(1, 4, long), (4, short))[0, 0], atol=1e-5)


def test_crops_of_any_size_travel_with_workers() -> None:
    images, augment = open_images("digits"), Augment((16, 16), (0.2, 1.0), True, (0.3,), (0.4,))
    sampler = EpochSampler(len(images), 32, seed=0, steps=2)
    for (cuts, labels), (each, same) in zip(
        loader(TrainSet(images, Cutter(augment), 0), sampler, workers=1),
        loader(TrainSet(images, augment, 0), sampler, workers=0),
        strict=True,
    ):
        assert torch.equal(labels, same)
        assert (finish(augment, cuts) - each).abs().max() < 2.01 / 255 / 0.4


@pytest.mark.usefixtures("_no_figures")
def test_a_run_learns_the_same(tmp_path: Path) -> None:
    losses = []
    augment = Augment((8, 8), (0.4, 1.0), False, (0.3,), (0.4,))
    for how in (augment, Cutter(augment)):
        stream = Stream(TrainSet(open_images("digits"), how, 3), batch_size=16, steps=6, seed=3, workers=0)
        engine = Engine(precision="fp32", device="cpu", log_every=1, eval_every=6, checkpoint_every=6)
        out = tmp_path / type(how).__name__
        train(
            tiny("mae"), stream, None, optimization=Optimization(lr=1e-3), engine=engine, out=out, title="test",
            finish=partial(finish, augment),
        )  # fmt: skip
        losses.append(curve(out / "metrics.csv", "loss")[1])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert len(losses[0]) == 6
