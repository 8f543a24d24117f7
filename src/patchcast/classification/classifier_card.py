"""The README.md of a fine-tuned classifier: its classes, what it reached, and how to load it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from patchcast import __version__
from patchcast.interop.card import IMAGE_MODES, fenced, markdown, without_place

LOADING = """\
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.no_grad():
    logits = model(transform(Image.open("photo.jpg").convert(MODE))[None])
print(model.pretrained_cfg["label_names"][int(logits.argmax())])"""
OF_CHANNELS = """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
# Images are (B, CHANNELS, height, width) in floating point, normalized by the mean and std of model.pretrained_cfg."""
"""For images that Pillow has no name for."""
NAMED = 30
"""Classes that the card names."""


def write_classifier_card(
    out: Path,
    network: str,
    data: str,
    names: Sequence[str],
    metrics: Mapping[str, Any],
    words: Sequence[str],
    *,
    channels: int,
) -> None:
    """Write README.md, with the metadata that the Hugging Face hub reads; no path of this machine is in it.

    Args:
        network: what training started from.
        metrics: those of metrics.json.
        words: of the command that trains it again.
        channels: of the images.
    """
    main = "accuracy" if "accuracy" in metrics else "mean_average_precision"
    words_of_it, found = main.replace("_", " "), metrics[main]
    rows = {
        words_of_it: f"{100 * found['value']:.1f} % (95 % interval {100 * found['low']:.1f} to "
        f"{100 * found['high']:.1f}), {metrics['test_images']:,} test images",
        **(
            {
                "mean accuracy of classes": f"{100 * metrics['balanced_accuracy']:.1f} %",
                "share of the largest class": f"{100 * metrics['largest_class_share']:.1f} %",
            }
            if main == "accuracy"
            else {"all labels of an image right": f"{100 * metrics['exactly_right']['value']:.1f} %"}
        ),
        f"validation {words_of_it}, by which it was chosen": f"{100 * metrics['chosen'][f'validation_{main}']:.1f} %",
        "training images": f"{metrics['training_images']:,}",
        "training": f"{metrics['processor_seconds']:,} s of processor time",
    }
    mode = IMAGE_MODES.get(channels)
    code = OF_CHANNELS.replace("CHANNELS", str(channels)) if mode is None else LOADING.replace("MODE", repr(mode))
    write_model_card(
        out,
        Path(__file__).with_name("card.md.jinja"),
        library="timm",
        task="image-classification",
        network=network,
        names=names,
        data=data,
        metrics=metrics,
        rows=rows,
        words=words,
        code=fenced(code, "python"),
        predict=fenced("patchcast predict FOLDER IMAGES --out predictions.csv", "bash"),
    )


def write_model_card(
    out: Path,
    template: Path,
    *,
    library: str,
    task: str,
    network: str,
    names: Sequence[str],
    data: str,
    metrics: Mapping[str, Any],
    rows: Mapping[str, str],
    words: Sequence[str],
    **parts: str,
) -> None:
    """Write README.md of a fine-tuned model: what every task's card says, and the parts that one task has.

    Args:
        out: the model's folder.
        library, task: as the Hugging Face hub names them.
        rows: of the table of results.
        parts: what else the template names.
    """
    shown = ", ".join(map(markdown, names[:NAMED])) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")
    card = ModelCard.from_template(
        ModelCardData(
            library_name=library,
            pipeline_tag=task,
            license="other",
            license_name="not-chosen-yet",
            tags=[task, "patchcast"],
        ),
        template_path=str(template),
        title=markdown(f"{without_place(network)} on {without_place(data)}"),
        classes=len(names),
        names=shown,
        version=__version__,
        results="\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]),
        data=markdown(metrics["data"].replace(data, without_place(data))),
        how=markdown(metrics["how"]),
        command=fenced(shlex.join(map(without_place, words)), "bash"),
        **parts,
    )
    card.save(out / "README.md")
