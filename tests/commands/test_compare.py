"""`patchcast compare`: runs beside what they have to beat."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from patchcast.cli import main
from patchcast.commands.compare import compare
from patchcast.comparison.supervised import RATES, SUPERVISED
from patchcast.evaluation.baselines import CONVOLUTIONS, PIXELS, STATISTICS
from patchcast.runs.network import OURS, UNTRAINED


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods from one start, and one of them with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = ["--model", "test_vit", "--data", "digits", "--steps", "2", "--batch_size", "16", "--workers", "0"]
    tiny += ["--eval_every", "2", "--checkpoint_every", "2", "--no_pictures", "--mean", "0.3", "--std", "0.4"]
    tiny += ["--model_args", '{"depth": 2, "embed_dim": 32, "num_heads": 2}']
    mae = ["--method", "mae", "--method_args", '{"decoder_width": 32, "decoder_depth": 1}']
    assert main(["pretrain", *mae, *tiny, "--out", str(folder / "mae")]) == 0
    assert (
        main(["pretrain", "--method", "simmim", *tiny, "--crop_scale", "[0.2, 1]", "--out", str(folder / "sim")]) == 0
    )
    assert main(["pretrain", *mae, *tiny, "--seed", "1", "--out", str(folder / "other")]) == 0
    return [folder / "mae", folder / "sim", folder / "other"]


def test_one_table_in_which_what_is_shared_stands_once(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.parquet"
    rates = RATES[::2]
    monkeypatch.setattr("patchcast.comparison.supervised.RATES", rates)
    options = {"data": None, "out": out, "per_class": [2], "draws": 2, "limit": 100}
    rows = compare(runs, **options)
    kinds = [(row.run.name, row.kind) for row in rows]
    assert kinds == [
        ("mae", OURS), ("mae", UNTRAINED), ("mae", SUPERVISED), ("mae", PIXELS),
        ("mae", STATISTICS), ("mae", CONVOLUTIONS),
        ("sim", OURS),
        ("other", OURS), ("other", UNTRAINED), ("other", SUPERVISED),
    ]  # fmt: skip
    found = pq.read_table(out).to_pylist()
    assert len(found) == len(rows)
    ours, untrained, supervised, pixels = found[:4]
    assert [row["network"] for row in found[3:6]] == [PIXELS, STATISTICS, CONVOLUTIONS]
    assert ours["linear_low"] < ours["linear"] < ours["linear_high"]
    assert ours["over_untrained"] == pytest.approx(ours["linear"] - untrained["linear"])
    assert found[6]["over_untrained"] == pytest.approx(found[6]["linear"] - untrained["linear"])
    assert untrained["over_untrained"] is None
    assert supervised["steps"] == 2
    assert supervised["lr"] in rates
    assert 0 <= supervised["own_classifier"] <= 1
    assert pixels["rankme"] is None
    assert pixels["few_2"] > 0.2, "ten classes"
    assert ours["train_images"] == 100
    assert ours["test_images"] == 72

    def trains(*_: object, **__: object) -> None:
        raise AssertionError("the supervised run was kept, and is not to be trained again")

    monkeypatch.setattr("patchcast.comparison.supervised.finetune", trains)
    again = compare(runs[:1], **options)
    assert [row.scores.accuracy for row in again] == [row.scores.accuracy for row in rows[:6]]
    assert (again[2].own, again[2].rate) == (rows[2].own, rows[2].rate)
    lines = capsys.readouterr().out.splitlines()
    compared = [line.partition(":")[0] for line in lines if " vs " in line]
    assert len(compared) == 3 * 5 + 5, "a line for each run and what it is compared with, and those of the second table"
    assert f"sim (simmim) vs {CONVOLUTIONS}" in compared
    assert max(map(len, (line for line in lines if "points" not in line))) <= 80


def test_mistakes(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs[0]), "--out", str(tmp_path / "table.csv")]) == 2
    assert "must end in .parquet" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "table.parquet")]) == 2
    assert "holds no run of patchcast: it has no config.yaml" in capsys.readouterr().err
