"""`patchcast report`: one file that holds all it shows, escapes what users write, and fits a phone."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from patchcast.cli import main
from patchcast.report import Curve, Section, Tile, definitions, html_table, line_chart, page
from patchcast.report.charts import ticks

TINY = ["--model", "test_vit", "--data", "digits", "--steps", "4", "--batch_size", "16", "--workers", "0"]
TINY += ["--eval_every", "2", "--checkpoint_every", "4", "--mean", "0.3", "--std", "0.4"]
NEVER_CLOSED = {"meta", "img", "line", "br"}


class Checked(HTMLParser):
    """Holds every tag that was opened, and whether each was closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def images_in(checked: Checked) -> list[Image.Image]:
    sources = [value for tag, name, value in checked.attributes if (tag, name) == ("img", "src")]
    assert all(source.startswith("data:image/png;base64,") for source in sources), "an image is not inside the page"
    return [Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder whose name is markup."""
    out = tmp_path_factory.mktemp("runs") / "<b>mae & co"
    small = ["--method", "mae", "--method_args", '{"decoder_width": 32, "decoder_depth": 1, "normalize": false}']
    assert main(["pretrain", *small, *TINY, "--out", str(out)]) == 0
    accuracy = {"value": 0.9, "low": 0.85, "high": 0.93}
    probe = {"linear": accuracy, "knn": {**accuracy, "k": 5}, "rankme": 12.3}
    probe["few_labels"] = [{"per_class": 5, "mean": 0.5, "std": 0.02, "draws": 20}]
    found = {"data": "<script>alert(1)</script>", "pretrained": probe, "untrained": probe, "raw pixels": probe}
    found["command"] = "patchcast probe there --limit 7"
    found["differences"] = {"untrained": {"value": 0.031, "low": 0.01, "high": 0.05}}
    (out / "probe.json").write_text(json.dumps(found))
    layers = {"data": "digits", "pretrained": {"0": 0.4, "1": 0.6}, "untrained": {"0": 0.3, "1": 0.2}}
    (out / "layers.json").write_text(json.dumps(layers))
    lines = (out / "metrics.csv").read_text().splitlines()
    lines = [f"{line},{'knn_accuracy' if place == 0 else 0.5}" for place, line in enumerate(lines)]
    (out / "metrics.csv").write_text("\n".join(lines) + "\n")
    return out


@pytest.fixture(scope="module")
def written(folder: Path) -> str:
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_everything_is_inside_and_nothing_is_fetched(written: str) -> None:
    checked = Checked(written)
    assert len(images_in(checked)) == 6 * 3 * 2, "reconstructions and maps of six images"
    fetched = {"src", "srcset", "data", "action", "poster"}
    assert not [value for _, name, value in checked.attributes if name in fetched and not value.startswith("data:")]
    assert not [tag for tag, *_ in checked.attributes if tag in ("link", "script", "iframe", "object")]
    assert "<script" not in written
    assert not re.search(r"url\(|@import|https?://", written)


def test_what_users_write_is_escaped(written: str) -> None:
    assert "<b>" not in written
    assert "&lt;b&gt;mae &amp; co" in written
    assert "&lt;script&gt;alert(1)" in written


def test_it_says_what_was_measured(written: str) -> None:
    for alt in ("90.0 [85.0, 93.0]", "50.0 ± 2.0", "This run vs untrained: +3.1 points", "probes during the run"):
        assert alt in written
    assert written.count("<polyline") >= 5
    assert "patchcast pretrain --method mae --model test_vit --data digits" in written
    assert "patchcast probe there --limit 7" in written


def test_a_run_without_labels_or_images(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for file in ("probe.json", "layers.json", "metrics.csv"):
        (bare / file).unlink()
    gone = str(tmp_path / "gone")
    assert main(["report", str(bare), "--data", gone, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not measured with labels yet" in text
    assert "The images cannot be shown" in text
    assert not images_in(Checked(text))


@pytest.mark.parametrize("method", ["imagegpt", "aim"])
def test_samples_and_completions(method: str, tmp_path: Path) -> None:
    options = {
        "imagegpt": ["--model", "imagegpt", "--model_args", '{"depth": 1, "width": 16, "heads": 2}', "--codes", "4"],
        "aim": ["--model", "test_vit", "--method_args", '{"head_depth": 1, "normalize": false}'],
    }
    run = tmp_path / method
    base = ["pretrain", "--method", method, "--data", "digits", "--steps", "2", "--batch_size", "16", "--workers", "0"]
    base += ["--eval_every", "2", "--checkpoint_every", "2"]
    assert main([*base, *options[method], "--out", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    pictures = len(images_in(Checked(text)))
    if method == "imagegpt":
        assert pictures == 6 * 4 + 24 + 6 * 3
        assert "new images that it draws" in text
    else:
        assert pictures == 6 * 3 * 3
        assert "Completed from the first half" in text


def test_charts_and_parts_escape_and_round() -> None:
    chart = line_chart([Curve("<i>", [0, 1], [1.0, float("nan")])], x_label="a&b", y_label='"c"', alt="<t>")
    assert "<i>" not in chart
    assert "nan" not in chart
    assert "a&amp;b" in chart
    Checked(
        page("t", "s", [Tile("1", "<n>")], [Section("a", "b", [chart, html_table(["<h>"], [["<r>", "<c>"]])])], "f")
    )
    assert "<h>" not in html_table(["<h>"], [["<r>", "<c>"]])
    assert "&lt;v&gt;" in definitions({"k": "<v>"})
    with pytest.raises(ValueError, match="at least one curve with a point"):
        line_chart([Curve("", [], [])], x_label="", y_label="", alt="")
    for low, high in ((0.0, 1.0), (2.3, 2.31), (-5.0, 1e6), (1e-7, 3e-7)):
        found = ticks(low, high, 5)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 9


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--virtual-time-budget=2000",
]
MEASURE = (
    "<script>addEventListener('load', () => document.querySelectorAll('iframe').forEach(frame => {"
    "const page = frame.contentDocument.documentElement;"
    "document.body.append(`width ${frame.width} needs ${page.scrollWidth}; `)}))</script>"
)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, which is not here")
def test_nothing_is_wider_than_a_phone_or_a_desk(written: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(written, encoding="utf-8")
    frames = "".join(f'<iframe src="report.html" width="{width}" height="900"></iframe>' for width in (390, 1280))
    (tmp_path / "widths.html").write_text(f"<!doctype html><body>{frames}{MEASURE}")
    options = [*QUIET, "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(BROWSER), *options, "--dump-dom", f"file://{tmp_path / 'widths.html'}"]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    widths = re.findall(r"width (\d+) needs (\d+)", seen)
    assert [shown for shown, _ in widths] == ["390", "1280"]
    for shown, needed in widths:
        assert int(needed) <= int(shown), f"at {shown} pixels the page needs {needed}"


def test_several_runs_on_one_page(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "probe.json").unlink()
    out = tmp_path / "compared.html"
    assert main(["report", str(folder), str(other), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    checked = Checked(text)
    assert "<title>2 runs</title>" in text
    assert "90.0 [85.0, 93.0]" in text, "the probe of the run that has one"
    assert "other --data LABELED" in text, "the command for the run that has none"
    assert text.count("<polyline") == 4, "two held-out losses and two accuracies"
    assert not [tag for tag, _, _ in checked.attributes if tag == "script"]


def test_the_page_begins_with_the_answer(written: str) -> None:
    answers = written.partition('<dl class="answers">')[2].partition("</dl>")[0]
    assert "Better than untrained (+3.1 points [+1.0, +5.0])" in answers
    assert written.index("answers") < written.index('class="tiles"')
