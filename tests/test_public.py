"""`import patchcast` is light, gives all that README and docs use, and wraps models by itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jaxtyping
import pytest
import timm
import torch
from torch import nn

import patchcast
from tests import methods

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)

# How to add a backbone to the library itself: it names the table that a contributor edits.
INSIDE = {"add-a-backbone.md": {"from patchcast.backbones.adapters import TORCHVISION"}}


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, patchcast; print(sorted({'torch', 'timm', 'numpy', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_name_resolves_and_is_listed() -> None:
    for name in patchcast.__all__:
        assert getattr(patchcast, name) is not None
    assert sorted(patchcast.__all__) == dir(patchcast)
    assert len(set(patchcast.__all__)) == len(patchcast.__all__)
    with pytest.raises(AttributeError, match="no attribute 'maee'"):
        _ = patchcast.maee


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "src/patchcast/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        seen |= {alias.name: (node.module or "").removeprefix("patchcast").strip(".") for alias in node.names}
    lazy = {name: home for home, names in patchcast._HOMES.items() for name in names}
    assert seen == lazy | dict.fromkeys(patchcast._MODULES, "")


def python_of(page: Path) -> list[ast.stmt]:
    blocks = (code for _, code in FENCE.findall(page.read_text()))
    return [node for code in blocks for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_readme_and_docs_use_the_public_face_alone(page: Path) -> None:
    for node in python_of(page):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "patchcast":
            if ast.unparse(node) in INSIDE.get(page.name, ()):
                continue
            assert node.module == "patchcast", f"{page.name}: {ast.unparse(node)}"
            assert {alias.name for alias in node.names} <= set(patchcast.__all__), ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(alias.name == "patchcast" or alias.name.split(".")[0] != "patchcast" for alias in node.names)
        for used in ast.walk(node):
            if isinstance(used, ast.Attribute) and isinstance(used.value, ast.Name) and used.value.id == "patchcast":
                assert used.attr in patchcast.__all__, f"{page.name}: {ast.unparse(used)}"


def test_the_page_of_stable_names_lists_every_name() -> None:
    page = (ROOT / "docs/api/stable.md").read_text()
    named = set(re.findall(r"`(\w+)`", page))
    assert set(patchcast.__all__) - {"__version__"} <= named


# ---- models and images as users have them ---------------------------------------------------------------------------


def over(model: nn.Module | str, method: str) -> patchcast.Pretrainer:
    second: list[object] = (
        [patchcast.PatchCodebook(torch.randn(8, 768), (16, 16))] if method in methods.OF_CODES else []
    )
    if method == "distill":
        second = [patchcast.FrozenFeatures(patchcast.wrap("test_resnet"), (16, 16))]
    return getattr(patchcast, method)(model, *second, **methods.SMALL[method])


@pytest.mark.parametrize("method", methods.SMALL)
def test_a_method_wraps_a_model_or_a_name(method: str) -> None:
    model = timm.create_model("test_vit")
    pretrainer = over(model, method)
    assert pretrainer.backbone.model is model
    assert type(over("test_vit", method).backbone) is type(pretrainer.backbone)
    backbone = patchcast.wrap("test_vit")
    assert over(backbone, method).backbone is backbone


@pytest.mark.parametrize(("bad", "sentence"), [(3, "timm's name; got 3"), (nn.Linear(1, 1), "no adapter knows Linear")])
def test_a_bad_model_gets_a_sentence(bad: object, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users: no check of types
    for method in (patchcast.wrap, patchcast.mae, patchcast.aim):
        with pytest.raises(ValueError, match=sentence):
            method(bad)
    with pytest.raises(ValueError, match="ImageGPT needs its own network"):
        patchcast.imagegpt(bad)
    with pytest.raises(ValueError, match="wrapped already, so img_size cannot be changed"):
        patchcast.wrap(patchcast.wrap("test_vit"), img_size=32)


def test_8_bit_images_get_a_sentence() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    backbone = patchcast.wrap("test_vit", img_size=32)
    pretrainer = patchcast.simmim(backbone)
    for run in (pretrainer, backbone, backbone.pool, backbone.embed):
        with pytest.raises(ValueError, match=r"got torch.uint8: give \(images / 255 - mean\) / std"):
            run(images)
    pretrainer(images.float())


# ---- after_step -----------------------------------------------------------------------------------------------------


def steps(pretrainer: nn.Module, count: int, *, call: bool, pieces: int = 1, **options: bool) -> list[str]:
    """Training steps on random images; the warnings that came of them."""
    parameters = [weight for weight in pretrainer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            for _ in range(pieces):
                pretrainer(torch.randn(2, 3, 32, 32)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if call:
                pretrainer.after_step()
    return [str(one.message) for one in caught]


def ijepa() -> patchcast.Pretrainer:
    torch.manual_seed(0)
    return patchcast.ijepa(patchcast.wrap("test_vit", img_size=32, patch_size=4), predictor_width=32, predictor_depth=1)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_a_loop_that_forgets_after_step_is_told_once(options: dict[str, bool]) -> None:
    (message,) = steps(ijepa(), 6, call=False, **options)
    assert "pretrainer.after_step()" in message
    assert "EMAFeatures" in message


def test_no_warning_where_nothing_is_forgotten() -> None:
    pretrainer = ijepa()
    before = pretrainer.target.teacher.model.pos_embed.clone()
    assert steps(pretrainer, 4, call=True, pieces=3) == []
    assert not torch.equal(before, pretrainer.target.teacher.model.pos_embed)  # it does what it is for
    assert int(pretrainer.target.step) == 4
    assert steps(pretrainer, 1, call=False, pieces=8) == []  # gradients that are gathered
    assert steps(patchcast.simmim(patchcast.wrap("test_vit", img_size=32)), 4, call=False) == []  # nothing to follow


def test_no_warning_for_a_loop_that_updates_the_target_itself() -> None:
    pretrainer = ijepa()
    pretrainer.after_step = lambda: pretrainer.target.update(pretrainer.backbone)  # as loops did before there was one
    assert steps(pretrainer, 6, call=True, fused=True) == []


def test_no_warning_in_evaluation_and_honesty_checks() -> None:
    pretrainer, images = ijepa(), torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            with torch.no_grad():
                next(iter(pretrainer.backbone.parameters())).add_(0.1)
                pretrainer(images)
            pretrainer.eval()
            pretrainer(images)
            pretrainer.train()
        patchcast.no_leak(pretrainer, images, pretrainer.draw(images), limit=2)


def test_the_count_is_no_part_of_the_state() -> None:
    pretrainer = ijepa()
    keys, versions = [*pretrainer.state_dict()], dict(pretrainer.state_dict()._metadata)
    steps(pretrainer, 2, call=False)
    assert [*pretrainer.state_dict()] == keys
    assert dict(pretrainer.state_dict()._metadata) == versions
