"""`patchcast search`: the images of a source that are nearest to one image, as a picture and a table."""

from __future__ import annotations

import csv
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from patchcast import options
from patchcast.classification.mistakes import draw_named
from patchcast.data.listed import open_listed
from patchcast.data.names import escape
from patchcast.extraction.image_search import search_images
from patchcast.files import check_writable, write_figure, write_text
from patchcast.ranges import AT_LEAST_1, check_ranges
from patchcast.runs.network import open_network, torch_device
from patchcast.runs.subjects import feature_cache


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
    device = torch_device(given.device)
    [query] = open_listed([str(given.image)], channels=network.backbone.channels)
    if len(query) != 1:
        raise ValueError(f"{given.image} holds {len(query):,} images; give one image file")
    console = Console(highlight=False)
    sources = open_listed([given.data], channels=network.backbone.channels, split=given.split)
    matches, count = search_images(
        network,
        query[0].image,
        sources,
        count=given.count,
        readout=given.readout,
        device=device,
        cache=feature_cache() if given.cache else None,
    )
    table = Table(box=SIMPLE_HEAD)
    for name in ("path", "label", "similarity"):
        table.add_column(name, overflow="fold", justify="right" if name == "similarity" else "left")
    lines = StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["path", "label", "similarity"])
    captions = [f"searched: {given.image.name}"]
    for match in matches:
        table.add_row(escape(match.path), escape(match.label), f"{match.similarity:.4f}")
        writer.writerow([match.path, match.label, f"{match.similarity:.6f}"])
        captions.append(f"{match.label or match.path.rpartition('/')[2]}\n{match.similarity:.3f}")
    write_figure(draw_named([query[0].image, *(match.image for match in matches)], captions), given.out)
    write_text(given.out.with_suffix(".csv"), lines.getvalue())
    console.print(table)
    left_out = sum(len(images.unreadable) for images in sources)
    unread = f" ({left_out:,} could not be read)" if left_out else ""
    files = escape(f"{given.out}, {given.out.with_suffix('.csv')}")
    console.print(f"The nearest {len(matches)} of {count:,} images{unread}: {files}.")
