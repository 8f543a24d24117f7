"""Settings with which transformers' image processors preprocess images as our evaluation does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BICUBIC = 3
"""Pillow's number for it, `Image.Resampling.BICUBIC`."""


def processor_config(
    kind: str, size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float], squash: bool
) -> dict[str, Any]:
    """`preprocessor_config.json` of a processor that does what `Evaluate(size, mean, std, squash=squash)` does.

    >>> config = processor_config("ViTImageProcessor", (32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, squash=False)
    >>> config["size"], config["do_center_crop"]
    ({'shortest_edge': 32}, True)

    transformers center-crops to square sizes only, and rounds the longer side of a resized image down, where `Evaluate`
    rounds to nearest. For other shapes the processor does not resize: it takes images of the network's size only, so
    that images of other sizes fail instead of being preprocessed differently.
    """
    rows, cols = size
    whole = {"height": rows, "width": cols}
    return {
        "image_processor_type": kind,
        "do_convert_rgb": len(mean) == 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_resize": squash or rows == cols,
        "resample": BICUBIC,
        "size": whole if squash else {"shortest_edge": rows},
        "do_center_crop": not squash,
        "crop_size": whole,
    }
