"""A run, and everything that was measured of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchcast.files import read_json
from patchcast.folder_files import METRICS, RESULTS
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Resolved
from patchcast.runs.network import OURS
from patchcast.runs.run import Run, open_run
from patchcast.training.log import curve

NETWORK_ROWS = {OURS: "this run"}
"""Other names for rows of a run's JSON files."""


@dataclass(frozen=True)
class RunNumbers:
    """A run and its results; empty if not measured.

    Attributes:
        probes: the contents of probe.json and similar files, by file name.
    """

    run: Run
    probes: Mapping[str, Any]

    @property
    def recipe(self) -> Resolved:
        return self.run.recipe

    @property
    def pretrainer(self) -> Pretrainer:
        return self.run.pretrainer

    @property
    def demo(self) -> dict[str, Any]:
        """What `patchcast demo` has measured; empty for other runs."""
        file = self.run.folder / "demo.json"
        return read_json(file) if file.exists() else {}

    @property
    def blind(self) -> float | None:
        """The loss of a prediction that ignores the image; None if it is not known."""
        file = self.run.folder / RESULTS
        return read_json(file).get("blind_loss") if file.exists() else None

    def curve(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of metrics.csv; empty if there is none."""
        file = self.run.folder / METRICS
        return curve(file, column) if file.exists() else ([], [])

    @property
    def speed(self) -> float | None:
        """Images per second, the median of what was logged."""
        speeds = self.curve("images_per_second")[1]
        return statistics.median(speeds) if speeds else None

    @property
    def seconds(self) -> float:
        """Training time from the logged speed."""
        steps, speeds = self.curve("images_per_second")
        before = [-1, *steps][: len(steps)]
        covered = sum(
            (step - last) / speed for step, last, speed in zip(steps, before, speeds, strict=True) if speed > 0
        )
        return float(covered * self.recipe.batch_size)


def numbers_of(folder: Path) -> RunNumbers:
    """A run, opened, with everything that was measured of it."""
    files = {name: folder / f"{name}.json" for name in ("probe", "layers", "attentive", "finetune", "dense")}
    probes = {name: read_json(file) for name, file in files.items() if file.exists()}
    return RunNumbers(open_run(folder), probes)
