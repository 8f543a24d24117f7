"""`patchcast report` of fine-tuned models, next to runs and tables of `compare`; `compare` of models without a run."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchcast.cli import main
from tests.classification.conftest import Photos


def text_of(file: Path) -> str:
    return " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", file.read_text(), flags=re.DOTALL)).split())


def test_a_page_about_a_classifier(tuned: Path, photos: Photos) -> None:
    assert main(["report", str(tuned)]) == 0
    page, metrics = (tuned / "report.html").read_text(), json.loads((tuned / "metrics.json").read_text())
    assert "http" not in page.replace("http://www.w3.org", "")
    said = text_of(tuned / "report.html")
    main_measure = metrics["accuracy"]
    low, high = 100 * main_measure["low"], 100 * main_measure["high"]
    assert (
        f"Accuracy {100 * main_measure['value']:.1f} % on 12 test images (95 % interval {low:.1f} to {high:.1f})"
        in said
    )
    assert "Naming the largest class every time would give 33.3 %." in said
    assert f"The weights of epoch {metrics['chosen']['epoch']} of 8 are the model" in said
    assert page.count("<polyline") == 3, "losses of training and validation, and the measure"
    counts = metrics["confusion"]
    assert [sum(row) for row in counts] == [4, 4, 4]
    for name, row, place in zip(photos.names, counts, range(3), strict=True):
        assert re.search(rf"{name} 4 {100 * row[place] / 4:.1f} \[", said), "test images and recall of each class"
    assert said.count("true \\ predicted blue green red") == 1
    assert metrics["command"] in said
    assert "patchcast predict" in said


def test_a_head_that_was_fitted(run: Path, photos: Photos, tmp_path: Path) -> None:
    out = tmp_path / "fitted"
    assert main(["finetune", str(run), "--data", str(photos.labeled), "--out", str(out)]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    said, chosen = text_of(tmp_path / "page.html"), json.loads((out / "metrics.json").read_text())["chosen"]
    assert "How the head was chosen" in said
    for row in chosen["strengths"]:
        assert f"{row['strength']:.3g} {100 * row['validation_accuracy']:.1f}" in said


def test_random_weights_are_called_so(run: Path, photos: Photos, tmp_path: Path) -> None:
    """Or what training from scratch reaches would be taken for the pretrained weights' result."""
    out, page = tmp_path / "scratch", tmp_path / "page.html"
    given = ["--untrained", "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    assert main(["finetune", str(run), "--data", str(photos.labeled), *given, "--out", str(out)]) == 0
    assert f"# {run.name}, untrained on {photos.labeled.name}" in (out / "README.md").read_text()
    for folders in ([out], [out, run]):
        assert main(["report", *map(str, folders), "--out", str(page)]) == 0
        assert f"{run.name}, untrained" in text_of(page)


def test_models_without_a_run_are_compared_and_shown_together(
    tuned: Path, run: Path, photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Does it beat the other weights on my images? One command, and one page."""
    table = tmp_path / "compared.parquet"
    words = ["compare", str(tuned), str(run / "model.safetensors"), "--out", str(table), "--per_class", "2"]
    assert main([*words, "--draws", "2"]) == 2
    assert "other weights have no data of their own; give --data LABELED" in capsys.readouterr().err
    words[2] = f"local-dir:{run}"
    assert main([*words, "--draws", "2", "--data", str(photos.labeled)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{tuned} vs {words[2]}: " in said
    assert f"own classifier of {tuned} vs a linear one on {words[2]}: " in said
    rows = {row["network"]: row for row in pq.read_table(table).to_pylist()}
    own = json.loads((tuned / "metrics.json").read_text())["accuracy"]["value"]
    assert rows[str(tuned)]["own_classifier"] == pytest.approx(own)
    assert rows[words[2]]["own_classifier"] is None
    assert rows["untrained test_vit"]["over_untrained"] is None
    page = tmp_path / "page.html"
    assert main(["report", str(run), str(tuned), str(table), "--out", str(page)]) == 0
    shown = text_of(page)
    assert "1 run and 1 fine-tuned model and 1 table" in shown
    assert "Compared: compared" in shown
    assert "own classifier" in shown
    assert "Fine-tuned models" in shown
    assert "The runs" in shown


def test_what_has_nothing_to_report(tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "vit_tiny_patch16_224"]) == 2
    assert "patchcast compare vit_tiny_patch16_224 --data LABELED" in capsys.readouterr().err
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "finetune.json").write_text("{}")
    assert main(["report", str(tmp_path / "x")]) == 2
    assert "fine-tuning has not finished in" in capsys.readouterr().err
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    assert main(["report", str(tmp_path / "other.parquet"), "--out", str(tmp_path / "page.html")]) == 2
    assert "holds no table of patchcast compare" in capsys.readouterr().err
    assert main(["report", str(tuned), "--data", "digits", "--out", str(tmp_path / "page.html")]) == 2
    assert "--data chooses the images on the page of one run" in capsys.readouterr().err
