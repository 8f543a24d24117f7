"""The README.md of exported weights: a model card with the run's recipe, its results, and how to load it.

Its text is in `card.md.jinja`, and the code that loads the weights in `loading.py.jinja`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from patchcast import __version__
from patchcast.arguments import words_of
from patchcast.backbones.backbone import Backbone
from patchcast.backbones.capabilities import READ_AS
from patchcast.backbones.tiled import Tiled
from patchcast.data.names import visible
from patchcast.files import read_json, write_text
from patchcast.geometry import to_rows
from patchcast.interop.export_formats import Exported
from patchcast.methods import Method
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import NOT_LEARNED, Recipe, Resolved

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, autoescape=False
)
HUB_LIBRARIES = {"timm": "timm", "transformers": "transformers", "onnx": "onnx", "torch": "pytorch"}
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's image modes by number of channels."""
RESIZING = {
    "center": "Other images are resized (bicubic, antialiased) to just cover that size, and their center is cut out.",
    "squash": "Other images are resized to that size, whatever their shape (bicubic, antialiased).",
}
MARKUP = re.compile(r"[\\`*_\[\]<>|#~&!]")


def write_card(run: Path, encoder: Exported, out: Path, *, to: str, where: str) -> None:
    """Write README.md, with the metadata that the Hugging Face hub reads.

    Args:
        run: the run's folder, where its results are.
        to: the format that was written; one of `patchcast.interop.export_formats.EXPORT_FORMATS`.
        where: `local-dir:FOLDER` or `hf-hub:USER/NAME`, as timm has it.
    """
    recipe, pretrainer = encoder.recipe, encoder.pretrainer
    height, width = _image_size(recipe, to)
    down, right = pretrainer.backbone.stride
    data = ModelCardData(
        library_name=HUB_LIBRARIES[to],
        pipeline_tag="image-feature-extraction",
        license="other",
        license_name="not-chosen-yet",
        tags=["self-supervised-learning", "patchcast", recipe.method, recipe.model],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        method=markdown(recipe.method),
        model=markdown(recipe.model),
        version=__version__,
        stride=f"{down}x{right}",
        training=_table(_training(recipe, pretrainer)),
        command=fenced(command(recipe), "bash"),
        results=_table(_results(run)),
        code=fenced(loading(recipe, encoder.method, pretrainer.backbone, to=to, where=where), "python"),
        size=f"{height}x{width}",
        channels="1 channel" if recipe.channels == 1 else f"{recipe.channels} channels",
        mean=list(recipe.mean),
        std=list(recipe.std),
        resizing=RESIZING[recipe.crop_mode],
    )
    write_text(out / "README.md", visible(str(card), besides="\n\t"))


def write_weights_card(name: str, backbone: Backbone, prepared: Preparation, out: Path, *, to: str, where: str) -> None:
    """Write README.md for weights that were not trained here: what they are and how to load them.

    Args:
        name: the words that they were opened by.
    """
    data = ModelCardData(
        library_name=HUB_LIBRARIES[to],
        pipeline_tag="image-feature-extraction",
        license="other",
        license_name="that-of-the-original-weights",
        tags=["patchcast"],
    )
    height, width = prepared.size
    down, right = backbone.stride
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("weights.md.jinja")),
        name=markdown(without_place(name)),
        version=__version__,
        stride=f"{down}x{right}",
        code=fenced(loading_of(backbone, prepared, to=to, where=where), "python"),
        size=f"{height}x{width}",
        channels="1 channel" if prepared.channels == 1 else f"{prepared.channels} channels",
        mean=[round(float(value), 6) for value in prepared.mean],
        std=[round(float(value), 6) for value in prepared.std],
        resizing=RESIZING["squash" if prepared.squash else "center"],
    )
    write_text(out / "README.md", visible(str(card), besides="\n\t"))


def markdown(text: str) -> str:
    r"""Escape text for Markdown, on one line.

    >>> markdown("a_b | `c`"), markdown("x\n# y")
    ('a\\_b \\| \\`c\\`', 'x \\# y')
    """
    return MARKUP.sub(lambda match: f"\\{match[0]}", " ".join(text.split()))


def fenced(code: str, language: str) -> str:
    """A code block, with a fence longer than any in the code."""
    longest = max((len(ticks) for ticks in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def command(recipe: Recipe) -> str:
    """The command that repeats the training, with every resolved option, and only the last part of paths.

    >>> recipe = Recipe("mae", "test_vit", "/home/me/photos", Path("runs/first"), steps=9, flip=True)
    >>> print(command(recipe))
    patchcast pretrain --method mae --model test_vit --data photos --out RUN --flip --steps 9
    """
    words = ["patchcast", "pretrain"]
    # As a `Recipe`, whose defaults are those of the command line: a resolved one has the defaults of earlier versions.
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    recipe = Recipe(**{**values, "model_args": _placeless(recipe.model_args)})
    for name, typed in words_of(recipe):
        if name == "out":
            words += ["--out", "RUN"]
        elif name in ("data", "tokenizer", "start", "teacher"):
            words += [typed[0], without_place(typed[1])]
        elif name not in NOT_LEARNED and name != "epochs":  # the number of steps is given
            words += typed
    return shlex.join(words)


@dataclass(frozen=True)
class Preparation:
    """How an image becomes what an exported network sees."""

    size: tuple[int, int]
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    squash: bool


def loading(recipe: Resolved, method: Method, backbone: Backbone, *, to: str, where: str) -> str:
    """Python that loads the exported weights and computes the embedding of an image file, `photo.jpg`."""
    squash = recipe.crop_mode == "squash"
    prepared = Preparation(_image_size(recipe, to), recipe.channels, recipe.mean, recipe.std, squash)
    return loading_of(backbone, prepared, to="imagegpt" if _is_palette(to, method) else to, where=where)


def _is_palette(to: str, method: Method) -> bool:
    return to == "transformers" and method.codes == "colors"


def loading_of(backbone: Backbone, prepared: Preparation, *, to: str, where: str) -> str:
    """As `loading`, of any network."""
    place, name = where.split(":", 1)
    is_download = place == "hf-hub" and to in FILES
    file = f"hf_hub_download({name!r}, {FILES[to]!r})" if is_download else repr(f"{name}/{FILES.get(to, '')}")
    encoder = backbone.tile if isinstance(backbone, Tiled) and to == "timm" else backbone
    height, width = prepared.size
    code = TEMPLATES.get_template("loading.py.jinja").render(
        to=to,
        where=repr(where),
        name=repr(name),
        file=file,
        is_download=is_download,
        is_plain=to == "timm" and _is_plain(encoder),
        # How to select the units from timm's `forward_features`, and the dimensions over which to take the mean.
        units=f"[:, {encoder.features_prefix}:]" if encoder.features_prefix else "",
        dims={"NLC": "1", "NHWC": "(1, 2)", "NCHW": "(2, 3)"}[encoder.features_layout],
        mode=IMAGE_MODES.get(prepared.channels),
        is_squashed=prepared.squash,
        height=height,
        width=width,
        channels=prepared.channels,
        mean=[float(value) for value in prepared.mean],
        std=[float(value) for value in prepared.std],
    )
    return code.strip()


@torch.no_grad()
def _is_plain(backbone: Backbone) -> bool:
    """Whether the model's own features are one tensor of prefix tokens and units, in order."""
    images = torch.randn(1, backbone.channels, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    features = backbone.model.forward_features(images)
    if not isinstance(features, torch.Tensor):
        return False
    rows = to_rows(features, backbone.features_layout)
    return rows.ndim == 3 and torch.equal(rows[:, backbone.features_prefix :], backbone.units(images))


def _image_size(recipe: Resolved, to: str) -> tuple[int, int]:
    """The size of the input; for timm, which gets the network of one tile only, of a tile."""
    return (recipe.tile_size, recipe.tile_size) if to == "timm" and recipe.tile_size else recipe.image_size


def _training(recipe: Resolved, pretrainer: Pretrainer) -> list[tuple[str, str]]:
    backbone = pretrainer.backbone
    height, width = recipe.image_size
    grid = backbone.grid(recipe.image_size)
    start = "random weights" if recipe.start is None else without_place(recipe.start)
    start = "timm's weights" if recipe.pretrained else start
    encoder = sum(weight.numel() for weight in backbone.model.parameters())
    tiles = f", in tiles of {recipe.tile_size}x{recipe.tile_size}" if recipe.tile_size else ""
    batch = recipe.batch_size
    return [
        ("method", f"{recipe.method} {recipe.method_args or ''}".strip()),
        ("model", f"{recipe.model} {_placeless(recipe.model_args) or ''}".strip() + f", from {start}"),
        ("parameters", f"{encoder / 1e6:.1f} M in the encoder"),
        ("data", without_place(recipe.data)),
        ("images", f"{recipe.channels} x {height} x {width}{tiles}, as {grid} units"),
        ("steps", f"{recipe.steps:,} of {batch} images ({recipe.epochs:g} passes over the data)"),
        ("learning rate", f"{recipe.lr:.3g} at its peak"),
        ("arithmetic", recipe.precision),
        ("seed", str(recipe.seed)),
        ("exported with", f"patchcast {__version__}, torch {torch.__version__}, timm {timm.__version__}"),
    ]


def _results(run: Path) -> Iterator[tuple[str, str]]:
    """The numbers in a run's folder, one per row."""
    metrics = _read(run / "metrics.json")
    for name, key in (("loss at the end", "loss"), ("loss on held-out images", "eval_loss")):
        unit = f" {metrics['unit']}" if "unit" in metrics else ""
        yield name, "not measured" if metrics.get(key) is None else f"{metrics[key]:.4g}{unit}"
    if "bits_per_pixel" in metrics:
        yield "of the quantized image", f"{metrics['bits_per_pixel']:.4g} bits per pixel"
    probes = [*_probes(run)]
    yield from probes or [("probes with labels", "not measured")]


def _probes(run: Path) -> Iterator[tuple[str, str]]:
    """Accuracies of every probe that was run, with their intervals or standard deviations."""
    for name in ("probe", "attentive", "finetune"):
        results = _read(run / f"{name}.json")
        if "data" in results:
            yield f"{name}: data", without_place(results["data"])
        if name == "probe" and results:  # files of earlier versions do not name it
            yield "probe: feature", READ_AS[results.get("readout", "mean")]
        yield from ((f"{name}: {label}", number) for label, number in _accuracies(results))


def _accuracies(results: Any, label: str = "") -> Iterator[tuple[str, str]]:
    """Every accuracy in a probe's file that has an interval or a standard deviation, at any depth."""
    if isinstance(results, list):
        for result in results:
            yield from _accuracies(result, label)
    elif isinstance(results, dict) and {"value", "low", "high"} <= results.keys():
        low, high = 100 * results["low"], 100 * results["high"]
        name, unit = (label.replace("differences, ", "ahead of "), "points") if "differences" in label else (label, "%")
        yield name, f"{100 * results['value']:.1f} {unit} (95 % interval {low:.1f} to {high:.1f})"
    elif isinstance(results, dict) and {"per_class", "mean", "std", "draws"} <= results.keys():
        spread = f"mean of {results['draws']} draws, spread {100 * results['std']:.1f}"
        yield f"{label}, {results['per_class']} per class", f"{100 * results['mean']:.1f} % ({spread})"
    elif isinstance(results, dict):
        for name, result in results.items():
            words = str(name).replace("_", " ")
            yield from _accuracies(result, f"{label}, {words}" if label else words)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {markdown(name)} | {markdown(value)} |" for name, value in rows)])


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _placeless(value: Any) -> Any:
    """The same with every path in it by its last part, however deep it lies."""
    if isinstance(value, Mapping):
        return {name: _placeless(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_placeless(part) for part in value]
    return without_place(value) if isinstance(value, str) else value


def without_place(value: str) -> str:
    """The last part of an absolute path: the rest may identify a user or machine."""
    model, _, path = value.removeprefix("local-dir:").rpartition("=")  # of starts: `local-dir:FOLDER`, `MODEL=FILE`
    path = path if "/" not in model and path.startswith(("/", "~")) else value
    return Path(path).name if path.startswith(("/", "~")) else value
