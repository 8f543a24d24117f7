"""`patchcast compare`: runs and their baselines in one table and one parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from patchcast import options
from patchcast.backbones.capabilities import DEFAULT_READOUT, READ_AS, Readout
from patchcast.comparison.results_table import results_table, write_rows
from patchcast.comparison.rows import Row, lines_of_classifiers, rows_of_first
from patchcast.comparison.supervised import Measure
from patchcast.data.names import escape
from patchcast.evaluation.feature_protocol import FeatureProtocol, versus
from patchcast.evaluation.protocol import Request
from patchcast.files import check_writable
from patchcast.recipe import Device
from patchcast.runs.network import is_run, open_network, torch_device
from patchcast.runs.subjects import feature_cache, subject_of


def compare(
    runs: Sequence[Path],
    *,
    data: str | None,
    out: Path,
    per_class: Sequence[int],
    draws: int,
    limit: int | None,
    supervised: bool = True,
    against: Sequence[str] = (),
    readout: Readout = DEFAULT_READOUT,
    device: Device = "auto",
    cache: bool = True,
) -> list[Row]:
    """Probe every run, its untrained network, a supervised run of the same budget and baselines; write a table.

    Rows that several runs share (the same untrained network or supervised run) are measured and shown once. A model of
    `patchcast finetune` is probed as other weights are, and its own classifier is measured on the same test images.

    Args:
        runs: run folders; other words of `--start` among them are compared as those of `against` are. Without a run,
            the first of them takes its place.
        against: further networks, by the words of `--start`.
        readout: how units become one feature, in every row.
    Raises:
        ValueError: for anything that the user can fix.
    """
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet; got {out}")
    check_writable(out)
    firsts = [run for run in runs if is_run(run)] or list(runs[:1])
    against = [*map(str, (words for words in runs if words not in firsts)), *against]
    if data is None and not is_run(firsts[0]):
        raise ValueError(
            f"{firsts[0]} holds no run of patchcast: it has no config.yaml, and other weights have no data of "
            "their own; give --data LABELED"
        )
    chosen = options.FeatureOptions(per_class=list(per_class), draws=draws, readout=readout, cache=cache)
    console, rows, lines, shared = Console(), list[Row](), list[str](), dict[str, Row]()
    for run in firsts:
        network = open_network(run)
        source = data or (network.recipe.data if network.recipe is not None else "")
        request = Request(
            source,
            network.backbone.channels,
            limit=limit,
            device=torch_device(device),
            cache=feature_cache(),
            held_out_share=network.held_out_share(source),
        )
        protocol = FeatureProtocol(chosen, request, subject_of(network))
        ours, others = rows_of_first(Measure(network, protocol, console), shared, supervised, against)
        lines += [f"{ours.label} vs {other.label}: {versus(ours.scores, other.scores)}" for other in others]
        rows += [ours, *(other for other in others if other not in rows)]
    lines += lines_of_classifiers(rows)
    console.print(results_table(rows, f"{protocol.description}; a network's feature is {READ_AS[readout]}"))
    for line in lines:
        console.print(line, highlight=False)
    write_rows(rows, protocol.labeled, out)
    console.print(f"Written to {escape(out)}: {len(rows)} rows.")
    return rows
