"""`patchcast predict`: labels with probabilities for any images, from a classifier or by votes."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from patchcast.classification.classifier_folder import open_classifier
from patchcast.cli import main
from patchcast.commands import predict as predicting
from patchcast.data.decode import decode
from tests.classification.conftest import Photos


def rows_of(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_classifier_names_new_images(tuned: Path, photos: Photos, tmp_path: Path) -> None:
    """Every row is what the model says of that file alone; parquet and CSV hold the same."""
    for name in ("a.parquet", "a.csv"):
        assert main(["predict", str(tuned), str(photos.new), "--out", str(tmp_path / name)]) == 0
    rows, written = rows_of(tmp_path / "a.parquet"), rows_of(tmp_path / "a.csv")
    assert [row["path"] for row in rows] == [row["path"] for row in written]
    assert [row["label"] for row in rows] == [row["label"] for row in written]
    assert len(rows) == 6
    ours = open_classifier(tuned)
    for row, other in zip(rows, written, strict=True):
        with Path(row["path"]).open("rb") as file, torch.no_grad():
            shares = ours.model(ours.evaluate(decode(file, 3))[None]).softmax(dim=1)[0]
        best = int(shares.argmax())
        assert row["label"] == photos.names[best]
        assert row["probability"] == pytest.approx(float(shares[best]), abs=1e-4)
        assert float(other["probability"]) == pytest.approx(row["probability"], abs=1e-5)
        assert sum(row[name] for name in ("probability", "probability_2", "probability_3")) == pytest.approx(1)
    assert sum(row["label"] in Path(row["path"]).name for row in rows) >= 5


def test_labeled_images_vote_for_a_run(run: Path, photos: Photos, tmp_path: Path) -> None:
    out = tmp_path / "votes.parquet"
    words = ["predict", str(run), str(photos.new), "--data", str(photos.labeled), "--neighbors", "5"]
    assert main([*words, "--top", "2", "--out", str(out)]) == 0
    rows = rows_of(out)
    assert list(rows[0]) == ["path", "label", "probability", "label_2", "probability_2"]
    assert sum(row["label"] in Path(row["path"]).name for row in rows) >= 5


def test_files_and_sources_together_and_unreadable_ones_named(
    tuned: Path, photos: Photos, tmp_path: Path, capsys: Any
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    files = sorted(str(file) for file in photos.new.iterdir())[:2]
    words = ["predict", str(tuned), *files, str(broken), str(tmp_path / "gone.png"), str(photos.labeled)]
    with pytest.warns(UserWarning, match="skipped"):
        assert main([*words, "--out", str(tmp_path / "a.csv")]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "2 images could not be read" in shown
    assert "broken.png" in shown
    assert "gone.png" in shown
    rows = rows_of(tmp_path / "a.csv")
    assert [row["path"] for row in rows[:2]] == files
    assert len(rows) == 2 + 36 + 12, "all splits of the folder"


def test_stopped_predictions_go_on(
    tuned: Path, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(predicting, "IMAGES_PER_PART", 4)
    words = ["predict", str(tuned), str(photos.labeled), "--split", "test", "--out"]
    assert main([*words, str(tmp_path / "whole.csv")]) == 0
    rows, seen = predicting.predicted_rows, []

    def stopping(*given: Any) -> Any:
        seen.append(given[2])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return rows(*given)

    monkeypatch.setattr(predicting, "predicted_rows", stopping)
    assert main([*words, str(tmp_path / "parts.csv")]) == 130
    assert not (tmp_path / "parts.csv").exists()
    assert main([*words, str(tmp_path / "parts.csv")]) == 0
    assert [list(places) for places in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (tmp_path / "parts.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert "Resuming after 1 parts" in capsys.readouterr().out


def test_without_a_file_a_table_is_printed(tuned: Path, photos: Photos, capsys: Any) -> None:
    assert main(["predict", str(tuned), str(photos.new / "red-0.png")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    [likeliest] = re.findall(r"probability .* (\w+) [01]\.\d{3}, \w+ 0\.\d{3}, \w+ 0\.\d{3}", shown)
    assert likeliest in photos.names


@pytest.mark.parametrize(
    ("out", "says"),
    [("a.txt", "--out must end in .parquet or .csv"), ("there.csv", "is there already")],
)
def test_files_that_cannot_be_written(
    out: str, says: str, tuned: Path, photos: Photos, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    assert main(["predict", str(tuned), str(photos.new), "--out", str(tmp_path / out)]) == 2
    assert says in capsys.readouterr().err
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_models_that_cannot_predict(run: Path, tuned: Path, photos: Photos, tmp_path: Path, capsys: Any) -> None:
    assert main(["predict", str(run), str(photos.new)]) == 2
    assert "has no classifier: give --data" in capsys.readouterr().err
    assert main(["predict", str(tuned), str(photos.new), "--data", str(photos.labeled)]) == 2
    assert "has a classifier of its own" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), str(photos.new)]) == 2
    assert "holds neither a classifier" in capsys.readouterr().err
    assert main(["predict", str(run), str(photos.new), "--data", str(photos.new)]) == 2
    assert "has no labels" in capsys.readouterr().err


def test_search_finds_an_image_itself_first(run: Path, photos: Photos, tmp_path: Path, capsys: Any) -> None:
    wanted, out = photos.labeled / "train" / "red" / "3.png", tmp_path / "near.png"
    words = ["search", str(run), str(wanted), "--data", str(photos.labeled), "--count", "5", "--out", str(out)]
    assert main(words) == 0
    rows = rows_of(out.with_suffix(".csv"))
    assert rows[0]["path"] == str(wanted)
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-4)
    assert [row["label"] for row in rows].count("red") >= 4
    values = [float(row["similarity"]) for row in rows]
    assert values == sorted(values, reverse=True)
    with Image.open(out) as picture:
        assert min(picture.size) > 100
    first = out.with_suffix(".csv").read_text()
    assert main(words) == 0  # from cached features
    assert out.with_suffix(".csv").read_text() == first
    capsys.readouterr()
    assert main(["search", str(run), str(photos.new), "--data", str(photos.labeled)]) == 2
    assert "give one image file" in capsys.readouterr().err


def test_names_with_markup_are_printed_as_they_are(tuned: Path, photos: Photos, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "[red]"
    folder.mkdir()
    file = shutil.copy(photos.new / "red-0.png", folder / "a.png")
    assert main(["predict", str(tuned), str(folder)]) == 0
    assert main(["search", str(tuned), str(file), "--data", str(folder), "--out", str(folder / "near.png")]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert shown.count("[red]/a.png") == 2
    assert "[red]/near.png" in shown
