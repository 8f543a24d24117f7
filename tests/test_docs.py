"""Every page of docs/ and the README: its Python runs, its commands are ones that there are, and the site builds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch

import patchcast.commands
from patchcast.backbones.adapters import TORCHVISION
from patchcast.backbones.capabilities import OWN_NETWORKS
from patchcast.cli import COMMANDS, main
from tests.few import few_digits

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
ANY_RUN = "--method mae --model test_vit --data digits --out RUN"  # what `...` stands for in `patchcast pretrain ...`


def blocks(page: Path, language: str) -> list[str]:
    return [code for _, name, code in FENCE.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[list[str]]:
    """The lines of a page that call patchcast, as words, whatever stands in front of it."""
    found = []
    for _, language, code in FENCE.findall(page.read_text()):
        if language in ("", "console", "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                if re.match(r"(patchcast|torchrun\b.* -m patchcast) ", line):
                    line = line[line.index("patchcast") :].replace(" ... ", f" {ANY_RUN} ")
                    found.append(shlex.split(line, comments=True)[1:])
    return found


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_the_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, Any] = {}
    digits = few_digits() if page.name in ON_FEW_DIGITS else nullcontext()
    with digits, patch.dict(TORCHVISION):  # to which one page adds
        for code in blocks(page, "python"):
            exec(compile(code, page.name, "exec"), names)
    for statement in CHECKS.get(page.name, []):
        assert eval(statement, names), statement


ON_FEW_DIGITS = {"imagegpt-python.md", "index.md", "few-labels.md"}
"""Pages that train and probe on the digits, whatever their number."""
CHECKS = {
    "README.md": [
        "output.embedding.shape == (8, 384)",
        "output.predictions.shape == (8, 1, 63, 48)",
        "mine.view.needs == 'drop'",
    ],
    "imagegpt-python.md": ["loss.item() < 2.5", "halves.shape == (4, 3, 64)"],  # from ln 16
}
"""What a page claims of its results, and does not say itself."""


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_the_commands_are_there(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line goes through the command line's own parsers, up to where the work would begin."""

    class Idle(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    for file in Path(patchcast.commands.__path__[0]).glob("[!_]*.py"):
        monkeypatch.setitem(sys.modules, f"patchcast.commands.{file.stem}", Idle(file.stem))
    monkeypatch.setitem(sys.modules, "patchcast.early_checks", Idle("early_checks"))
    for words in commands(page):
        assert words[0] in COMMANDS, words
        assert main(words) != 2, f"patchcast {shlex.join(words)}: {capsys.readouterr().err}"


def built(name: str) -> Any:
    """A method of the library on a small network of the kind that it needs."""
    method = patchcast.METHODS[name]
    if name in OWN_NETWORKS:
        palette = patchcast.Palette(torch.linspace(-1, 1, 16)[:, None])
        network = patchcast.ImageGPT(patchcast.Grid(4, 4), 16, depth=1, width=16, heads=2, causal=method.causal)
        return method.build(patchcast.ImageGPTBackbone(network, palette, channels=1))
    second: list[Any] = [patchcast.PatchCodebook(torch.randn(8, 768), (16, 16))] if method.codes == "patches" else []
    if method.teacher == "required":
        second = [patchcast.FrozenFeatures(patchcast.wrap("test_resnet"), (16, 16))]
    return method.build(patchcast.wrap("test_vit"), *second)


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_the_table_of_methods_says_what_they_are(page: str) -> None:
    """One row for each file of methods/, with the parts that the method is built of."""
    lines = (ROOT / page).read_text().splitlines()
    header = lines.index("| method | plan | view | predictor | target | loss |")
    rows = {}
    for line in lines[header + 2 :]:
        if not line.startswith("|"):
            break
        label, *parts = (cell.strip() for cell in line.strip("|").split("|"))
        rows[re.search(r"\((?:.*/)?(\w+)\.(?:py|md)\)", label)[1]] = parts  # type: ignore[index]
    files = {method.build.__module__.rpartition(".")[2] for method in patchcast.METHODS.values()}
    assert rows.keys() == files
    for name, (plan, view, predictor, target, loss) in rows.items():
        method = built(name)
        kind, arguments = re.match(r"`(\w+)\((.*?)\)`", plan).groups()  # type: ignore[union-attr]
        assert type(method.plan).__name__ == kind, name
        assert not arguments or vars(method.plan)["ratio"] == float(arguments), name
        for part, cell in ((method.view, view), (method.predictor, predictor), (method.target, target)):
            assert f"`{type(part).__name__}" in cell, name
        assert method.loss.__name__ in loss, name
        if isinstance(method.target, patchcast.Pixels):
            assert method.target.normalize == ("normali" in target), name


def test_the_page_of_methods_names_every_method() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    assert all(f"`{name}`" in page for name in patchcast.METHODS)


def test_the_pages_are_looked_at() -> None:
    assert sum(len(blocks(page, "python")) for page in PAGES) > 40
    assert sum(len(commands(page)) for page in PAGES) > 40


def test_pictures_are_there_and_small() -> None:
    for page in PAGES:
        for picture in re.findall(r"!\[[^\]]*\]\((?!http)(.*?)\)", page.read_text()):
            assert (page.parent / picture).stat().st_size < 200_000, picture


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """With every link and anchor inside it; and it asks nothing of any other host."""
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(https?:)?//[^"]*"', page.read_text())
        assert not loaded, page
    assert (tmp_path / "repository" / "recipes" / "slurm.sh").exists(), "what pages link to in the repository"
    assert "is excluded from the built site" not in built.stderr
    assert 'class="doc doc-object doc-function"' in (tmp_path / "api" / "methods" / "index.html").read_text()
