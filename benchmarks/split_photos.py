"""Photos with labels, without splits, as folders train/CLASS and test/CLASS: a fifth of each class to test on.

    python benchmarks/split_photos.py ../shared/data/trashnet split
    python benchmarks/learning.py split --out benchmarks/results/trashnet.json --options --image_size 64 --patch_size 8

They are smaller there, so that reading them takes no longer than learning from them: the shorter side has 176 pixels,
as JPEG of quality 92.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torchvision.transforms.functional import resize, to_pil_image

from patchcast.data import open_images

SHORTER, QUALITY, SEED = 176, 92, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    images = open_images(args.data)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED)).tolist()
    per_class: dict[int, list[int]] = defaultdict(list)
    for index in order:
        per_class[images.labels[index]].append(index)
    for label, members in per_class.items():
        for place, index in enumerate(members):
            split = "test" if place < len(members) // 5 else "train"
            folder = args.out / split / images.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            photo = to_pil_image(resize(images[index].image, SHORTER, antialias=True))
            photo.save(folder / f"{index:04}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
