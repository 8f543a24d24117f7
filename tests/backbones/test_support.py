"""The table of what can do what, and the pages about backbones, are current."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from patchcast.backbones import wrap
from patchcast.backbones.support import docs_page, made_for, measure, support, table
from tests.backbones.zoo import FAST, NAMES, assert_same, flat, images_for

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_has_every_architecture_of_its_timm() -> None:
    if timm.__version__ != made_for():
        pytest.skip(f"the table is for timm {made_for()}, and {timm.__version__} is installed")
    assert [row.name for row in table()] == timm.list_models()


SOME = [
    pytest.param(row, marks=[pytest.mark.slow] * (place % 2), id=row.name) for place, row in enumerate(table()[::60])
]


@pytest.mark.parametrize("row", SOME)
def test_the_table_says_what_backbones_declare(row: Any) -> None:
    if timm.__version__ != made_for():
        pytest.skip(f"the table is for timm {made_for()}, and {timm.__version__} is installed")
    assert measure(row.name) == row


def test_every_class_is_in_the_tests() -> None:
    entered = {row.model_class for row in table() if row.can > {"paint"}}
    assert entered == set(FAST)
    assert {row.name for row in table()} >= set(NAMES)


ATTEND = {
    "Beit",
    "Cait",
    "DeepseekVitClassifier",
    "DeepseekVitEncoder",
    "Eva",
    "Gemma4VitClassifier",
    "Gemma4VitEncoder",
    "NaFlexVit",
    "Qwen3VitClassifier",
    "Qwen3VitEncoder",
    "VisionTransformer",
    "VisionTransformerDistilled",
    "VisionTransformerRelPos",
}


def test_what_each_class_is_expected_to_do() -> None:
    entered = [row for row in table() if row.can > {"paint"}]
    assert {row.model_class for row in entered if "attend" in row.can} == ATTEND
    assert {row.model_class for row in entered if "drop" in row.can} == ATTEND | {"Hiera", "TNT"}
    assert all(row.can >= {"replace", "paint"} for row in entered)
    assert all(("drop" in row.can) == (row.model_class in ATTEND | {"Hiera", "TNT"}) for row in entered)


def test_support_selects_by_pattern_and_need() -> None:
    assert {row.name for row in support("hiera_*", needs="drop")} == {row.name for row in support("hiera_*")}
    assert support("swin_*", needs="attend") == []
    assert len(support(needs="paint")) == len(table())
    assert all(not row.is_causal_for_pixels for row in support("vitamin_*", needs="attend"))
    assert all(row.is_causal_for_pixels for row in support("beit*", needs="attend"))


def test_the_page_is_current() -> None:
    assert (DOCS / "backbones.md").read_text() == "\n".join(docs_page()) + "\n", (
        "run: python -m patchcast.backbones.support page > docs/backbones.md"
    )


def test_the_example_of_add_a_backbone() -> None:
    """The page's own code is under 30 lines, exact, and leaks nothing."""
    code = re.search(r"```python\n(.*?)```", (DOCS / "add-a-backbone.md").read_text(), re.DOTALL)
    assert code is not None
    adapter = code[1][code[1].index("class ") : code[1].index("TORCHVISION[")].rstrip()
    assert len(adapter.splitlines()) < 30
    names: dict[str, Any] = {}
    exec(compile(code[1], "add-a-backbone.md", "exec"), names)
    backbone, model = names["backbone"], names["model"]
    try:
        assert type(wrap(model)) is names["TorchvisionMaxViT"]
    finally:
        del names["TORCHVISION"]["MaxVit"]
    images = images_for(backbone)
    is_hidden = torch.zeros(2, *backbone.grid(images), dtype=torch.bool)
    is_hidden[:, 0, 0] = True
    changed = images.clone()
    changed[..., :32, :32] += 1
    with torch.no_grad():
        assert_same(model.classifier(backbone(images)), model(images))
        assert backbone.units(images).shape == (2, 4, backbone.width)
        token = torch.randn(backbone.embed_width)
        ours, others = (
            backbone.forward_stages(backbone.embed(each, is_hidden=is_hidden, mask_token=token))
            for each in (images, changed)
        )
        assert_same(ours, others)
        assert not torch.equal(flat(ours)[0], flat(backbone(images))[0])
