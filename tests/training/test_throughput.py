"""Images a second and the share of time waiting for data, by a clock that only reading and training move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from patchcast.data import Augment, EvalSet, Evaluate, TrainSet, open_images
from patchcast.training.engine import Engine
from patchcast.training.log import read_metrics
from patchcast.training.loop import train
from patchcast.training.optimization import Optimization
from patchcast.training.progress import Throughput
from patchcast.training.stream import Stream
from tests.training.test_run import before_updates, tiny


class Clock:
    """Moves by `per_image` seconds with every image that is read, and by `per_step` with every step."""

    def __init__(self, per_image: float, per_step: float) -> None:
        self.now, self.per_image, self.per_step = 0.0, per_image, per_step

    def augment(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        self.now += self.per_image
        return AUGMENT(image, seed)


class Slow(DataLoader[Any]):
    """Held-out images that take long."""

    clock: Clock

    def __iter__(self) -> Any:
        self.clock.now += 1000.0
        return super().__iter__()


AUGMENT = Augment((8, 8), (0.4, 1.0), False, (0.3,), (0.4,))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_log_says_how_fast_and_what_it_waits_for(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 images of 25 ms and a step of 0.6 s: 16 a second, 40 % of the time waiting; evaluations do not count."""
    clock = Clock(per_image=0.025, per_step=0.6)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    images = open_images("digits")
    stream = Stream(
        TrainSet(images, clock.augment, 0), batch_size=16, steps=9, seed=0, workers=0, accumulate=accumulate
    )
    held_out = Slow(Subset(EvalSet(images, Evaluate((8, 8), (0.3,), (0.4,))), range(32)), batch_size=16)
    held_out.clock = clock
    engine = Engine(precision="fp32", device="cpu", log_every=1, eval_every=3, checkpoint_every=9)

    def work(*_: Any) -> None:
        clock.now += clock.per_step

    with before_updates(work):
        share = train(
            tiny("mae"), stream, held_out, optimization=Optimization(lr=1e-3), engine=engine, out=tmp_path, title="test"
        )  # fmt: skip
    rows = read_metrics(tmp_path / "metrics.csv")
    # The first batch comes before the clock starts.
    measured = [(float(row["images_per_second"]), float(row["data_wait"])) for row in rows if row["images_per_second"]]
    assert len(measured) >= 8
    assert any(rate == pytest.approx(16.0) and waiting == pytest.approx(0.4) for rate, waiting in measured)
    assert 8 * 0.4 / (8 * 0.4 + 9 * 0.6) - 1e-6 <= share <= 0.4
    assert all(16.0 - 1e-6 <= rate <= 16 / 0.6 + 1e-6 and 0 <= waiting <= 0.4 + 1e-6 for rate, waiting in measured)
    assert all(float(row["peak_memory_mb"]) > 10 for row in rows if row["images_per_second"])


def test_the_line_says_so_where_it_matters() -> None:
    stream = Stream(TrainSet(open_images("digits"), AUGMENT, 0), batch_size=16, steps=1, seed=0, workers=0)
    throughput = Throughput(stream)
    throughput.rate, throughput.waiting = 16.0, 0.4
    assert str(throughput) == "16 images/s, 40% of the time waiting for data"
    throughput.waiting = 0.01
    assert str(throughput) == "16 images/s"
