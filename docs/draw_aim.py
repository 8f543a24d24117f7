"""Draw docs/images/aim-completions.png: AIM on raw pixels of scikit-learn's digits, four blocks, 400 steps."""

from __future__ import annotations

from pathlib import Path

import torch

from patchcast.backbones import wrap
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.data import Augment, EpochSampler, Evaluate, TrainSet, loader, open_images
from patchcast.data.transforms import denormalize
from patchcast.drawing.completion import complete_pixels
from patchcast.drawing.figures import Version, draw_versions
from patchcast.methods import aim

STEPS, BATCH, SIZE = 400, 64, (8, 8)
MEAN, STD = (0.3,), (0.4,)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    backbone = wrap(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=2, in_chans=1, embed_dim=96, depth=4, num_heads=3
    )  # fmt: skip
    start_from_sincos(backbone)
    pretrainer = aim(backbone, head_depth=2, normalize=False)
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    digits = open_images("digits")
    train_set = TrainSet(digits, Augment(SIZE, (0.8, 1.0), False, MEAN, STD), seed=0)
    for step, (images, _) in enumerate(loader(train_set, EpochSampler(len(digits), BATCH, seed=0, steps=STEPS), 0)):
        loss = pretrainer(images, generator=torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    test, evaluate = open_images("digits", split="test"), Evaluate(SIZE, MEAN, STD)
    images = torch.stack([evaluate(test[index].image) for index in range(12)])
    units = backbone.grid(SIZE).units
    versions = {"image": Version(denormalize(images, MEAN, STD))}
    for given in (units // 2, units // 4):
        is_hidden = (torch.arange(units) >= given).view(1, 1, *backbone.grid(SIZE))
        pixels = is_hidden.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)[:, 0].expand(len(images), -1, -1)
        completed = complete_pixels(pretrainer, images, given)
        versions[f"{given} of {units}"] = Version(denormalize(images, MEAN, STD), pixels)
        versions["completed" + " " * len(versions)] = Version(denormalize(completed, MEAN, STD))
    figure = draw_versions(versions)
    figure.savefig(Path(__file__).parent / "images" / "aim-completions.png", dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
