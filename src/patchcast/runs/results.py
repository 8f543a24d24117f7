"""Files of a finished run next to its weights: the encoder for its library, pictures and numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from patchcast.drawing.figures import draw_loss, draw_versions
from patchcast.drawing.samples import DrawOptions, write_samples
from patchcast.drawing.versions import caption, versions
from patchcast.evaluation.ngrams import bits_per_pixel
from patchcast.files import write_figure, write_json
from patchcast.interop.export_formats import Exported, is_exported, write_encoder
from patchcast.runs.run import Run
from patchcast.runs.run_folder import METRICS, RESULTS
from patchcast.runs.timm_arguments import timm_args
from patchcast.runs.tokenizer import CodeData
from patchcast.training.log import curve

PICTURED, SAMPLES = 8, 16
"""Images in the final picture, and images that an ImageGPT draws."""


def write_results(run: Run, codes: CodeData | None, unreadable: Mapping[str, str]) -> str:
    """Write everything except the weights; returns a sentence about the loss."""
    if is_exported(run.method):
        write_encoder(encoder_of(run), run.folder)
    if run.pretrainer.target.is_drawn:
        name = "completions.png" if run.method.causal else "reconstructions.png"
        images, phrase = held_out_images(run, PICTURED)
        drawn = versions(run.pretrainer, images, (run.recipe.mean, run.recipe.std))
        write_figure(draw_versions(drawn, caption=caption(run.pretrainer, phrase)), run.folder / name)
    if run.method.causal:
        write_samples(run.pretrainer, run.folder / "samples.png", count=SAMPLES, draws=DrawOptions())
    return _write_numbers(run, codes, unreadable)


def encoder_of(run: Run) -> Exported:
    """The part of a run that is exported."""
    model_args = {} if run.method.codes == "colors" else timm_args(run.recipe)
    return Exported(run.recipe, run.method, run.pretrainer, model_args)


def held_out_images(run: Run, count: int) -> tuple[torch.Tensor, str]:
    """The first `count` images for the run's pictures, and a phrase that describes them."""
    part = run.source.shown
    places = range(min(count, len(part.images)))
    return torch.stack([run.evaluation(part.images[place].image) for place in places]), part.phrase


def _write_numbers(run: Run, codes: CodeData | None, unreadable: Mapping[str, str]) -> str:
    recipe = run.recipe
    steps, losses = curve(run.folder / METRICS, "loss")
    held_steps, held = curve(run.folder / METRICS, "eval_loss")
    title = f"{recipe.method} on {recipe.data}"
    write_figure(draw_loss((steps, losses), (held_steps, held), title=title), run.folder / "loss.png")
    numbers = {"steps": recipe.steps, "loss": losses[-1] if losses else None, "eval_loss": held[-1] if held else None}
    in_units, words = _in_units(run, (held or losses or [float("nan")])[-1], codes)
    named = [f"{name}: {reason}" for name, reason in unreadable.items()]
    write_json(run.folder / RESULTS, {**numbers, **in_units, "unreadable_images": named})
    return words or _course(losses, held)


def _course(losses: Sequence[float], held: Sequence[float]) -> str:
    """From which loss to which: on held-out images, or else on training images."""
    which, values = ("held-out", held) if held else ("training", losses)
    return f"The loss on {which} images went from {values[0]:.3g} to {values[-1]:.3g}." if values else ""


def _in_units(run: Run, loss: float, codes: CodeData | None) -> tuple[dict[str, Any], str]:
    """A loss on codes and its baselines by counting, for metrics.json and as text; empty for losses without a unit."""
    if codes is None:
        return {}, ""
    psnr = codes.psnr if math.isfinite(codes.psnr) else None  # JSON has no infinity
    numbers: dict[str, Any] = {
        "unit": "nats per code", "floors": dataclasses.asdict(codes.floors), "palette_psnr_db": psnr
    }  # fmt: skip
    words = f"The loss is {loss:.3f} nats per code ({codes.floors} by counting)."
    if run.method.causal:
        numbers["bits_per_pixel"] = bits_per_pixel(loss)
        words = f"{words[:-1]}, {numbers['bits_per_pixel']:.3f} bits per pixel of the quantized image."
    return numbers, words
