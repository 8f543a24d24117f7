"""`patchcast search`: the images of a source that are nearest to one image, as a picture and a table."""

from __future__ import annotations

import csv
from io import StringIO

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from patchcast import options
from patchcast.classification.mistakes import draw_named
from patchcast.data import EvalLoader, EvalSet
from patchcast.data.listed import open_listed
from patchcast.evaluation.features import extract
from patchcast.files import check_writable, write_figure, write_text
from patchcast.modes import evaluating
from patchcast.ranges import AT_LEAST_1, check_ranges
from patchcast.runs.network import open_network, torch_device
from patchcast.runs.subjects import feature_cache
from patchcast.stages import stage

BATCH = 256


def search(given: options.Search) -> None:
    """Draw the image and its nearest ones, by the cosine of their features, and write a table of them.

    Raises:
        ValueError: for anything that the user can put right, in one sentence.
    """
    check_ranges({"count": given.count}, {"count": AT_LEAST_1}, prefix="--")
    if given.out.suffix != ".png":
        raise ValueError(f"--out must end in .png; got {given.out}")
    check_writable(given.out)
    network = open_network(given.model)
    backbone, device = network.backbone, torch_device(given.device)
    [query] = open_listed([str(given.image)], channels=backbone.channels)
    if len(query) != 1:
        raise ValueError(f"{given.image} holds {len(query):,} images; give one image file")
    console = Console(highlight=False)
    sources = open_listed([given.data], channels=backbone.channels, split=given.split)
    features, paths, places = [], [], []
    for number, images in enumerate(sources):
        with stage(f"Features of {images.name} ({images.split})"):
            batches = EvalLoader(EvalSet(images, network.evaluate), BATCH)
            cache = feature_cache() if given.cache else None
            features.append(extract(backbone, batches, device=device, readout=given.readout, cache=cache).x)
        bad = {image.index for image in images.unreadable}
        for place, position in enumerate(images.positions.tolist()):
            if position not in bad:
                paths.append(images.store.path(position))
                places.append((number, place))
    picture = query[0].image
    with evaluating(backbone.to(device)):
        wanted = backbone.pool(network.evaluate(picture)[None].to(device), given.readout).float().cpu()
    similarity = F.cosine_similarity(torch.cat(features), wanted)
    values, nearest = similarity.topk(min(given.count, len(similarity)))

    table = Table(box=SIMPLE_HEAD)
    for name in ("path", "label", "similarity"):
        table.add_column(name, overflow="fold", justify="right" if name == "similarity" else "left")
    lines = StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["path", "label", "similarity"])
    shown, captions = [picture], [f"searched: {given.image.name}"]
    for index, value in zip(nearest.tolist(), values.tolist(), strict=True):
        number, place = places[index]
        images = sources[number]
        image, label = images[place]
        names = images.class_names
        name = "" if label < 0 else names[label] if names else str(label)
        table.add_row(paths[index], name, f"{value:.4f}")
        writer.writerow([paths[index], name, f"{value:.6f}"])
        shown.append(image)
        captions.append(f"{name or paths[index].rpartition('/')[2]}\n{value:.3f}")
    figure = draw_named(shown, captions)
    write_figure(figure, given.out)
    write_text(given.out.with_suffix(".csv"), lines.getvalue())
    console.print(table)
    left_out = sum(len(images.unreadable) for images in sources)
    unread = f" ({left_out:,} could not be read)" if left_out else ""
    console.print(
        f"The nearest {len(nearest)} of {len(paths):,} images{unread}: {given.out}, {given.out.with_suffix('.csv')}."
    )
