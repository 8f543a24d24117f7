"""The README.md of a fine-tuned segmenter: its classes, what it reached, and how to load it in every format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchcast.classification.classifier_card import NAMED, write_model_card
from patchcast.files import write_text
from patchcast.interop.card import HUB_LIBRARIES, IMAGE_MODES, fenced, markdown

OWN = """\
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from patchcast.segmentation.segmenter_folder import open_segmenter

segmenter = open_segmenter("FOLDER")
image = pil_to_tensor(Image.open("photo.jpg").convert(MODE))
mask = segmenter.probabilities(image).argmax(dim=0)
print({name: round(float((mask == place).double().mean()), 3) for place, name in enumerate(segmenter.names)})"""
CODE_HEAD = """\
import json

import numpy as np
LIBRARY
from PIL import Image

about = json.load(open("FOLDER/preprocessing.json"))
names = json.load(open("FOLDER/classes.json"))
channels, height, width = about["input_size"]
MODEL


def normalized(image):
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, channels) / 255
    return ((pixels - about["mean"]) / about["std"]).transpose(2, 0, 1)[None].astype(np.float32)

"""
PREDICT_WHOLE = """
def predict(image):
    small = run(normalized(image.resize((width, height), Image.Resampling.BICUBIC)))[0]
    maps = [Image.fromarray(one).resize(image.size, Image.Resampling.BILINEAR) for one in small]
    return np.stack([np.asarray(one) for one in maps])

"""
PREDICT_TILED = """
def starts(whole, one):
    return sorted({*range(0, whole - one, max(1, one // 2)), whole - one})


def predict(image):
    below, right = max(0, height - image.height), max(0, width - image.width)
    pixels = np.pad(normalized(image), ((0, 0), (0, 0), (0, below), (0, right)), mode="edge")
    total = np.zeros((len(names), *pixels.shape[2:]), dtype=np.float32)
    for top in starts(pixels.shape[2], height):
        for left in starts(pixels.shape[3], width):
            tile = pixels[:, :, top : top + height, left : left + width]
            total[:, top : top + height, left : left + width] += run(tile)[0]
    return (total / total.sum(axis=0))[:, : image.height, : image.width]

"""
CODE_TAIL = """
image = Image.open("photo.jpg").convert(MODE)
mask = predict(image).argmax(axis=0)
Image.fromarray(mask.astype(np.uint8)).save("mask.png")
print({name: round(float((mask == place).mean()), 3) for place, name in enumerate(names)})"""
RUN_ONNX = """\
session = onnxruntime.InferenceSession("FOLDER/model.onnx")


def run(images):
    return session.run(["probabilities"], {"images": images})[0]"""
RUN_TORCH = """\
model = torch.export.load("FOLDER/model.pt2").module()


def run(images):
    with torch.no_grad():
        return model(torch.from_numpy(images))[0].numpy()"""
RUNNERS = {"onnx": ("import onnxruntime", RUN_ONNX), "torch": ("import torch", RUN_TORCH)}
OF_TILES = "Large images are cut into tiles of {height}x{width} pixels that overlap by half, and the tiles averaged. "


def segmenter_code(to: str, *, tiled: bool) -> str:
    """Complete code that gives each pixel of a photo a class; FOLDER and MODE stand for the folder and the image mode.

    >>> "InferenceSession" in segmenter_code("onnx", tiled=False)
    True
    """
    library, model = RUNNERS[to]
    return (
        CODE_HEAD.replace("LIBRARY", library).replace("MODEL", model)
        + (PREDICT_TILED if tiled else PREDICT_WHOLE)
        + CODE_TAIL
    )


def write_segmenter_card(
    out: Path,
    network: str,
    data: str,
    names: Sequence[str],
    metrics: Mapping[str, Any],
    words: Sequence[str],
    *,
    channels: int,
    size: tuple[int, int],
    tiled: bool,
) -> None:
    """Write README.md, with the metadata that the Hugging Face hub reads; no path of this machine is in it.

    Args:
        network: what training started from.
        metrics: those of metrics.json.
        words: of the command that trains it again.
        channels, size: of the network's images.
    """
    found = metrics["mean_iou"]
    rows = {
        "mean IoU": f"{100 * found['value']:.1f} % (95 % interval {100 * found['low']:.1f} to "
        f"{100 * found['high']:.1f}), {metrics['test_images']:,} test images",
        "pixels right": f"{100 * metrics['pixel_accuracy']['value']:.1f} %",
        **{f"IoU of {markdown(name)}": f"{100 * value:.1f} %" for name, value in list(metrics["iou"].items())[:NAMED]},
        "validation mean IoU, by which it was chosen": f"{100 * metrics['chosen']['validation_mean_iou']:.1f} %",
        "training images": f"{metrics['training_images']:,}",
        "training": f"{metrics['processor_seconds']:,} s of processor time",
    }
    mode = IMAGE_MODES.get(channels)
    code = OWN if mode is not None else OWN.replace(OWN.splitlines()[6], f"image = ...  # ({channels}, height, width)")
    write_model_card(
        out,
        Path(__file__).with_name("card.md.jinja"),
        library="patchcast",
        task="image-segmentation",
        network=network,
        names=names,
        data=data,
        metrics=metrics,
        rows=rows,
        words=words,
        code=fenced(code.replace("MODE", repr(mode)), "python"),
        tiles=OF_TILES.format(height=size[0], width=size[1]) if tiled else "",
        predict=fenced("patchcast predict FOLDER IMAGES --out masks", "bash"),
    )


def write_exported_card(readme: Path, out: Path, *, to: str, channels: int, tiled: bool) -> None:
    """The segmenter's README.md, with the code of another format."""
    text = readme.read_text(encoding="utf-8")
    code = segmenter_code(to, tiled=tiled).replace("MODE", repr(IMAGE_MODES.get(channels, "RGB")))
    block = fenced(code, "python")
    text = re.sub(r"```python\n.*?```", lambda _: block, text, count=1, flags=re.DOTALL)
    text = text.replace("library_name: patchcast", f"library_name: {HUB_LIBRARIES[to]}", 1)
    write_text(out / "README.md", text)
