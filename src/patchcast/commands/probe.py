"""`patchcast probe`: open a network and data, measure every row with one protocol, print, and write JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from patchcast import options
from patchcast.data.names import escape
from patchcast.evaluation.intervals import paired_accuracy_difference
from patchcast.evaluation.protocol import OURS, Protocol, Request
from patchcast.evaluation.protocols import PROTOCOLS
from patchcast.files import check_writable, write_json
from patchcast.recipe import Resolved
from patchcast.runs.network import is_run, open_network, torch_device
from patchcast.runs.run import reading
from patchcast.runs.subjects import feature_cache, rows_of, subject_of
from patchcast.stages import stage


def probe(given: options.ProbeOptions, protocol: str, chosen: Any, *, typed: str = "") -> dict[str, Any]:
    """Measure a network, the same network before training, and baselines.

    Args:
        protocol: a key of `PROTOCOLS`.
        chosen: the options of that protocol.
        typed: the command line, for the JSON file.
    Returns:
        the result of every row by its name.
    Raises:
        ValueError: for anything that the user can fix.
    """
    network = open_network(given.source, untrained=given.untrained)
    data = given.data or (None if network.recipe is None else network.recipe.data)
    if data is None:
        raise ValueError(f"{network.name} is a model of timm, which has no data: give --data LABELED")
    request = Request(
        data,
        network.backbone.channels,
        is_own=given.data is None,
        limit=given.limit,
        device=torch_device(given.device),
        cache=feature_cache(),
        reading=_reading(given, None if given.data is not None else network.recipe),
        held_out_share=network.held_out_share(data),
        split=given.split,
    )
    subject = subject_of(network)
    measuring = PROTOCOLS[protocol](chosen, request, subject)
    out = given.out or network.own_file(f"{measuring.file}.json")
    if out is not None:
        check_writable(out)
    console, results = Console(), dict[str, Any]()
    for name, row in rows_of(network, given.against).items():
        with stage(f"Measuring the {name} row"):
            results[name] = measuring.measure(row)
        row.backbone.cpu()
    for name, measure in measuring.baselines(subject):
        with stage(f"Measuring the {name} row"):
            results[name] = measure()
    for table in measuring.tables(results):
        console.print(table)
    for line in measuring.comparisons(results):
        console.print(line, highlight=False)
    if found := verdict(measuring, results):
        console.print(f"[bold]{found}[/]", highlight=False)
    if measuring.cache is not None:
        console.print(f"Features are cached in {escape(measuring.cache)}, which may be deleted at any time.")
    if out is not None:
        numbers = measuring.record(results)
        write_json(out, {"command": typed, "network": network.name, "data": measuring.description, **numbers})
        pictures = "".join(f" Pictures: {picture}." for picture in measuring.save_pictures(results, out))
        following = (
            f" Next: [bold]patchcast report {escape(shlex.quote(given.source))}[/]" if is_run(given.source) else ""
        )
        console.print(f"Written to {escape(out)}.{escape(pictures)}{following}")
    return results


def verdict(measuring: Protocol[Any], results: Mapping[str, Any]) -> str:
    """Which rows the pretrained network is better than, in one sentence; empty if images are not compared one by one.

    It is better than a row if the interval of the difference on the same test images is above 0.
    """
    ours = measuring.correct(results[OURS]) if OURS in results else None
    if ours is None:
        return ""
    others = {name: measuring.correct(result) for name, result in results.items() if name != OURS}
    lows = {name: paired_accuracy_difference(ours, right).low for name, right in others.items() if right is not None}
    better = [name for name, low in lows.items() if low > 0]
    rest = [name for name, low in lows.items() if low <= 0]
    parts = [f"better than {', '.join(better)}"] if better else []
    parts += [f"not better than {', '.join(rest)}"] if rest else []
    return f"In short: {', '.join(parts)}." if parts else ""


def _reading(given: options.ProbeOptions, recipe: Resolved | None) -> dict[str, Any]:
    """How the images are read: as the options say, or else as the run read its own."""
    own = {} if recipe is None else reading(recipe)
    asked = {name: getattr(given, name) for name in ("image_column", "label_column", "max_pixels")}
    return {name: own.get(name) if value is None else value for name, value in asked.items()}
