"""Files of a finished run next to its weights: the encoder for its library, pictures and numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from patchcast.data.images import evenly_spaced
from patchcast.drawing.animation import write_progress
from patchcast.drawing.figures import draw_loss, draw_versions
from patchcast.drawing.samples import DrawOptions, write_samples
from patchcast.drawing.versions import NEW, caption, versions
from patchcast.evaluation.ngrams import bits_per_pixel
from patchcast.files import write_figure, write_json
from patchcast.folder_files import METRICS, RESULTS
from patchcast.interop.export_formats import Exported, is_exported, write_encoder
from patchcast.runs.run import Run
from patchcast.runs.timm_arguments import timm_args
from patchcast.runs.tokenizer import CodeData
from patchcast.training.checkpoints import load_latest
from patchcast.training.log import AVERAGE, curve
from patchcast.training.probing import PROBE_NAMES
from patchcast.training.shards import fill

PICTURED, SAMPLES = 8, 16
"""Images in the final picture, and images that an ImageGPT draws."""


def write_results(
    run: Run, codes: CodeData | None, unreadable: Mapping[str, str], *, blind: float | None = None
) -> str:
    """Write everything except the weights; returns a sentence about the loss.

    Args:
        blind: the loss of a prediction that ignores the image; None if there is none.
    """
    if is_exported(run.method):
        write_encoder(encoder_of(run), run.folder)
    if run.pretrainer.target.is_drawn:
        name = "completions.png" if run.method.causal else "reconstructions.png"
        images, phrase = held_out_images(run, PICTURED)
        drawn = versions(run.pretrainer, images, (run.recipe.mean, run.recipe.std))
        write_figure(draw_versions(drawn, caption=caption(run.pretrainer, phrase)), run.folder / name)
        if run.method.causal:
            write_progress(run.folder, [*drawn, NEW], NEW)
        else:
            write_progress(run.folder, list(drawn), list(drawn)[-1])
    if run.method.causal:
        write_samples(run.pretrainer, run.folder / "samples.png", count=SAMPLES, draws=DrawOptions())
    return _write_numbers(run, codes, unreadable, blind)


def better_average(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights, if their last loss on held-out images is lower than that of the last weights; else none."""
    last, averaged = (curve(folder / METRICS, column)[1][-1:] for column in ("eval_loss", AVERAGE))
    checkpoint = load_latest(folder) if averaged and last and averaged[0] < last[0] else None
    average = None if checkpoint is None else fill(checkpoint).average
    return {name.removeprefix("pretrainer."): value for name, value in (average or {}).items()}


def probes_from_start(folder: Path) -> dict[str, dict[str, float]]:
    """Accuracies before the first step and at the last evaluation, by column; empty if not measured in both."""
    found = {}
    for name in PROBE_NAMES:
        steps, values = curve(folder / METRICS, name) if (folder / METRICS).exists() else ([], [])
        if steps[:1] == [0] and len(steps) > 1:
            found[name] = {"start": values[0], "end": values[-1]}
    return found


def after_start(run: Run) -> list[str]:
    """Sentences about what became of the weights that a run started from."""
    sentences = []
    if run.recipe.ema:
        last, averaged = (curve(run.folder / METRICS, column)[1][-1:] for column in ("eval_loss", AVERAGE))
        if last and averaged:
            which = "averaged" if averaged[0] < last[0] else "last"
            sentences.append(f"The {which} weights are saved: loss {averaged[0]:.4g} averaged, {last[0]:.4g} last.")
        else:
            sentences.append("The last weights are saved: without held-out images nothing says if averages are better.")
    probes = probes_from_start(run.folder)
    if probes:
        shown = [
            f"{PROBE_NAMES[name]} {100 * row['end']:.1f} % (start: {100 * row['start']:.1f} %)"
            for name, row in probes.items()
        ]
        sentences.append(f"Probes during the run: {', '.join(shown)}.")
    return sentences


def encoder_of(run: Run) -> Exported:
    """The part of a run that is exported."""
    model_args = {} if run.method.codes == "colors" else timm_args(run.recipe)
    return Exported(run.recipe, run.method, run.pretrainer, model_args)


def held_out_images(run: Run, count: int) -> tuple[torch.Tensor, str]:
    """Images for the run's pictures, and a phrase that describes them.

    They are evenly spaced: many sources are sorted by class, and their first images are all alike.
    """
    part = run.source.shown
    phrase = part.phrase if run.source.held_out is None else f"Not trained on: {part.phrase}"
    places = evenly_spaced(len(part.images), count)
    return torch.stack([run.evaluation(part.images[place].image) for place in places]), f"{phrase}, evenly spaced"


def _write_numbers(run: Run, codes: CodeData | None, unreadable: Mapping[str, str], blind: float | None) -> str:
    recipe = run.recipe
    steps, losses = curve(run.folder / METRICS, "loss")
    held_steps, held = curve(run.folder / METRICS, "eval_loss")
    title = f"{recipe.method} on {recipe.data}"
    drawn = draw_loss((steps, losses), (held_steps, held), title=title, blind=blind)
    write_figure(drawn, run.folder / "loss.png")
    numbers = {"steps": recipe.steps, "loss": losses[-1] if losses else None, "eval_loss": held[-1] if held else None}
    numbers["blind_loss"] = blind
    in_units, words = _in_units(run, (held or losses or [float("nan")])[-1], codes)
    if run.recipe.ema and held:
        averaged = curve(run.folder / METRICS, AVERAGE)[1][-1:]
        in_units |= {AVERAGE: averaged[0] if averaged else None}
        in_units["saved_weights"] = "averaged" if averaged and averaged[0] < held[-1] else "last"
    if probes := probes_from_start(run.folder):
        in_units["probes"] = probes
    named = [f"{name}: {reason}" for name, reason in unreadable.items()]
    write_json(run.folder / RESULTS, {**numbers, **in_units, "unreadable_images": named})
    return words or _course(losses, held, blind)


def _course(losses: Sequence[float], held: Sequence[float], blind: float | None) -> str:
    """From which loss to which: on held-out images, or else on training images."""
    which, values = ("held-out", held) if held else ("training", losses)
    guess = "" if blind is None else f"; a blind prediction has {blind:.3g}"
    return f"The loss on {which} images went from {values[0]:.3g} to {values[-1]:.3g}{guess}." if values else ""


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
