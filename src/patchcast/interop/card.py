"""The README.md beside exported weights: what the run was, what it reached, and how they are loaded."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from patchcast import __version__
from patchcast.backbones.backbone import Backbone
from patchcast.backbones.tiled import Tiled
from patchcast.geometry import to_rows
from patchcast.interop.export_formats import Exported
from patchcast.methods import Method
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import NOT_LEARNED, Recipe, Resolved

LIBRARIES = {"timm": "timm", "transformers": "transformers", "onnx": "onnx", "torch": "pytorch"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's names of images with so many channels."""

CARD = """\
{head}
# {method} of {model}

An encoder of images, pretrained without labels by patchcast {version}. What comes out is one feature vector for each
unit of {stride} pixels, and their mean, the embedding of the image. There is no classifier in it.

## What the run was

{was}

Run again with

```bash
{command}
```

## What it reached

{reached}

## How to load it

```python
{code}
```

Images are {size} pixels (height x width) with {channels}. White is 1; then each channel has its mean subtracted, and is
divided by its deviation: mean {mean}, deviation {std}. {fit}

## Licence

**None has been chosen yet.** Whose weights these are decides, and has to look at the licence of the images as well:
write it here, and in the place of `license: other` at the top of this file.
"""


FIT = {
    "center": "Images are resized until they just cover it\n(bicubic, with antialiasing), and their center is cut out.",
    "squash": "Images of other sizes are resized to it, whatever\ntheir shape (bicubic, with antialiasing).",
}


def write_card(run: Path, encoder: Exported, out: Path, *, to: str, where: str) -> None:
    """Write README.md, with a head as the Hugging Face hub reads it.

    Args:
        run: the run's folder, in which what it reached is looked up.
        to: the format that was written; one of `patchcast.interop.export_formats.EXPORT_FORMATS`.
        where: `local-dir:FOLDER` or `hf-hub:USER/NAME`, as timm has it.
    """
    recipe, pretrainer = encoder.recipe, encoder.pretrainer
    height, width = _image_size(recipe, to)
    down, right = pretrainer.backbone.stride
    text = CARD.format(
        head=f"---\n{yaml.safe_dump(_head(recipe, to), sort_keys=False)}---\n",
        method=recipe.method,
        model=recipe.model,
        version=__version__,
        stride=f"{down}x{right}",
        was=_table(_was(recipe, pretrainer)),
        command=command(recipe),
        reached=_table(list(_reached(run))),
        code=loading(recipe, encoder.method, pretrainer.backbone, to=to, where=where),
        size=f"{height}x{width}",
        channels="1 channel" if recipe.channels == 1 else f"{recipe.channels} channels",
        mean=list(recipe.mean),
        std=list(recipe.std),
        fit=FIT[recipe.crop_mode],
    )
    (out / "README.md").write_text(text)


def command(recipe: Recipe) -> str:
    """The command that learns the same again, with every default that was found for it, and paths by their last part.

    >>> recipe = Recipe("mae", "test_vit", "/home/me/photos", Path("runs/first"), steps=9, flip=True)
    >>> print(command(recipe))
    patchcast pretrain --method mae --model test_vit --data photos --out RUN --flip true --steps 9
    """
    words = ["patchcast", "pretrain"]
    recipe = dataclasses.replace(recipe, model_args=_placeless(recipe.model_args))
    for name, value in recipe.given():
        if name == "out":
            words += ["--out", "RUN"]
        elif name not in NOT_LEARNED and name != "epochs":  # the number of steps is given
            words += [f"--{name}", _without_place(value) if name in ("data", "tokenizer") else value]
    return shlex.join(words)


def loading(recipe: Resolved, method: Method, backbone: Backbone, *, to: str, where: str) -> str:
    """Python that loads the exported weights and computes the embedding of an image file, `photo.jpg`."""
    place, name = where.split(":", 1)
    code = LOADING["imagegpt" if to == "transformers" and method.codes == "colours" else to]
    file = repr(f"{name}/{FILES[to]}") if to in FILES else ""
    if place == "hf-hub" and file:
        file = f"hf_hub_download({name!r}, {FILES[to]!r})"
        code = f"from huggingface_hub import hf_hub_download\n{code}"
    encoder = backbone.tile if isinstance(backbone, Tiled) and to == "timm" else backbone
    if to == "timm" and not _is_plain(encoder):
        code = code.replace(
            "from PIL import Image, ImageOps\n",
            "from PIL import Image, ImageOps\nfrom patchcast.backbones import wrap\n",
        )
    return (
        code.replace("GREY", '.convert("L")' if recipe.channels == 1 else "")
        .replace("PREPARE", _preparing(recipe, to))
        .replace("WHERE", repr(where))
        .replace("NAME", repr(name))
        .replace("FILE", file)
        .replace("EMBEDDING", _embedding(encoder) if to == "timm" else "")
        .strip()
    )


FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
LOADING = {
    "timm": """\
import numpy as np
import timm
import torch
from PIL import Image, ImageOps

PREPARE
model = timm.create_model(WHERE, pretrained=True, num_classes=0).eval()
with torch.no_grad():
EMBEDDING
""",
    "transformers": """\
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import ViTMAEModel

PREPARE
model = ViTMAEModel.from_pretrained(NAME, mask_ratio=0.0).eval()
with torch.no_grad():
    tokens = model(torch.from_numpy(images)).last_hidden_state  # the class token, and the units in any order
embedding = tokens[:, 1:].mean(dim=1)
""",
    "imagegpt": """\
import torch
from PIL import Image
from transformers import ImageGPTForCausalImageModeling, ImageGPTImageProcessor

model = ImageGPTForCausalImageModeling.from_pretrained(NAME).eval()
processor = ImageGPTImageProcessor.from_pretrained(NAME)
codes = processor(Image.open("photo.jpg")GREY, return_tensors="pt")["input_ids"]
start = torch.full((len(codes), 1), model.config.vocab_size - 1)  # every code is predicted from those before it
with torch.no_grad():
    output = model(torch.cat([start, codes[:, :-1]], dim=1), output_hidden_states=True)
embedding = output.hidden_states[-1].mean(dim=1)
""",
    "onnx": """\
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

PREPARE
session = onnxruntime.InferenceSession(FILE)
embedding, units = session.run(None, {"images": images})
""",
    "torch": """\
import numpy as np
import torch
from PIL import Image, ImageOps

PREPARE
model = torch.export.load(FILE).module()
embedding, units = model(torch.from_numpy(images))
""",
}


def _preparing(recipe: Resolved, to: str) -> str:
    """From an image file to a batch of one; of what Pillow does not open, from an array."""
    (height, width), channels = _image_size(recipe, to), recipe.channels
    size = f"({width}, {height}), Image.Resampling.BICUBIC)"
    fitted = f"image.resize({size}" if recipe.crop_mode == "squash" else f"ImageOps.fit(image, {size}"
    if channels in MODES:
        opened = (
            f'image = Image.open("photo.jpg").convert("{MODES[channels]}")\n'
            f"image = {fitted}\n"
            f"pixels = np.asarray(image, dtype=np.float32).reshape({height}, {width}, {channels}) / 255\n"
        )
    else:
        opened = f"pixels = np.zeros(({height}, {width}, {channels}), dtype=np.float32)  # your image, white being 1\n"
    mean, std = (
        f"np.array({[float(each) for each in values]}, dtype=np.float32)" for values in (recipe.mean, recipe.std)
    )
    return f"{opened}mean = {mean}\nstd = {std}\nimages = ((pixels - mean) / std).transpose(2, 0, 1)[None]\n"


def _embedding(backbone: Backbone) -> str:
    """The mean over the units of what timm's `forward_features` returns; by this library where they lie otherwise."""
    units = f"features[:, {backbone.features_prefix}:]" if backbone.features_prefix else "features"
    dims = {"NLC": "1", "NHWC": "(1, 2)", "NCHW": "(2, 3)"}[backbone.features_layout]
    mean = f"{units}.mean(dim={dims})"
    return (
        f"    features = model.forward_features(torch.from_numpy(images))\n    embedding = {mean}"
        if _is_plain(backbone)
        else "    embedding = wrap(model).pool(torch.from_numpy(images))"
    )


@torch.no_grad()
def _is_plain(backbone: Backbone) -> bool:
    """Whether the model's own features are one tensor, of prefix tokens and units in their order."""
    images = torch.randn(1, backbone.channels, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    features = backbone.model.forward_features(images)
    if not isinstance(features, torch.Tensor):
        return False
    rows = to_rows(features, backbone.features_layout)
    return rows.ndim == 3 and torch.equal(rows[:, backbone.features_prefix :], backbone.units(images))


def _image_size(recipe: Resolved, to: str) -> tuple[int, int]:
    """Of what goes in: of one tile, where timm has no more of the network."""
    return (recipe.tile_size, recipe.tile_size) if to == "timm" and recipe.tile_size else recipe.image_size


def _head(recipe: Resolved, to: str) -> dict[str, Any]:
    return {
        "library_name": LIBRARIES[to],
        "pipeline_tag": "image-feature-extraction",
        "license": "other",
        "license_name": "not-chosen-yet",
        "tags": ["self-supervised-learning", "patchcast", recipe.method, recipe.model],
    }


def _was(recipe: Resolved, pretrainer: Pretrainer) -> list[tuple[str, str]]:
    backbone = pretrainer.backbone
    height, width = recipe.image_size
    grid = backbone.grid(recipe.image_size)
    start = "timm's weights" if recipe.pretrained else "random weights"
    encoder = sum(each.numel() for each in backbone.model.parameters())
    tiles = f", in tiles of {recipe.tile_size}x{recipe.tile_size}" if recipe.tile_size else ""
    batch = recipe.batch_size
    return [
        ("method", f"{recipe.method} {recipe.method_args or ''}".strip()),
        ("model", f"{recipe.model} {_placeless(recipe.model_args) or ''}".strip() + f", from {start}"),
        ("parameters", f"{encoder / 1e6:.1f} M in the encoder"),
        ("data", _without_place(recipe.data)),
        ("images", f"{recipe.channels} x {height} x {width}{tiles}, as {grid} units"),
        ("steps", f"{recipe.steps:,} of {batch} images ({recipe.epochs:g} passes over the data)"),
        ("learning rate", f"{recipe.lr:.3g} at its peak"),
        ("arithmetic", recipe.precision),
        ("seed", str(recipe.seed)),
        ("exported with", f"patchcast {__version__}, torch {torch.__version__}, timm {timm.__version__}"),
    ]


def _reached(run: Path) -> Iterator[tuple[str, str]]:
    """What was written down of a run, one number a row."""
    metrics = _read(run / "metrics.json")
    for name, key in (("loss at the end", "loss"), ("loss on held-out images", "eval_loss")):
        unit = f" {metrics['unit']}" if "unit" in metrics else ""
        yield name, "not measured" if metrics.get(key) is None else f"{metrics[key]:.4g}{unit}"
    if "bits_per_pixel" in metrics:
        yield "of the quantised image", f"{metrics['bits_per_pixel']:.4g} bits per pixel"
    probes = [*_probes(run)]
    yield from probes or [("probes with labels", "not measured")]


def _probes(run: Path) -> Iterator[tuple[str, str]]:
    """Accuracies with their intervals or spreads, of all probes that have been run."""
    for name in ("probe", "attentive", "finetune"):
        found = _read(run / f"{name}.json")
        if "data" in found:
            yield f"{name}: data", _without_place(found["data"])
        yield from ((f"{name}: {label}", number) for label, number in _accuracies(found))


def _accuracies(found: Any, label: str = "") -> Iterator[tuple[str, str]]:
    """What of a probe's file is an accuracy and has an interval or a spread, however deep it lies in it."""
    if isinstance(found, list):
        for each in found:
            yield from _accuracies(each, label)
    elif isinstance(found, dict) and {"value", "low", "high"} <= found.keys():
        low, high = 100 * found["low"], 100 * found["high"]
        name, unit = (label.replace("differences, ", "ahead of "), "points") if "differences" in label else (label, "%")
        yield name, f"{100 * found['value']:.1f} {unit} (95 % interval {low:.1f} to {high:.1f})"
    elif isinstance(found, dict) and {"per_class", "mean", "std", "draws"} <= found.keys():
        spread = f"mean of {found['draws']} draws, spread {100 * found['std']:.1f}"
        yield f"{label}, {found['per_class']} a class", f"{100 * found['mean']:.1f} % ({spread})"
    elif isinstance(found, dict):
        for name, each in found.items():
            words = str(name).replace("_", " ")
            yield from _accuracies(each, f"{label}, {words}" if label else words)


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _placeless(value: Any) -> Any:
    """The same with every path in it by its last part, however deep it lies."""
    if isinstance(value, Mapping):
        return {name: _placeless(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_placeless(each) for each in value]
    return _without_place(value) if isinstance(value, str) else value


def _without_place(value: str) -> str:
    """Paths of a person's machine are nobody else's business: of an absolute one, the last part."""
    return Path(value).name if value.startswith(("/", "~")) else value
