"""The package's files stand in layers, and importing a lower one loads nothing of the upper ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import rooms


def test_no_circle_no_upward_import_no_new_name_twice_and_a_true_map() -> None:
    assert rooms.problems() == []


def test_the_check_sees_imports_inside_functions_and_not_those_for_types(tmp_path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from patchcast.methods import mae\n"
        "def f():\n    from patchcast.plans import orders, RandomMask\n    import patchcast.files\n"
    )
    assert rooms.imports(file, rooms.modules()) == {"plans.orders", "plans", "files"}


def test_a_file_without_a_layer_is_named() -> None:
    with pytest.raises(KeyError, match="attic has no layer"):
        rooms.layer("attic")


def test_a_map_that_is_not_true() -> None:
    page = (
        "`losses.py`\n## The map\n| | `plans/plan.py`, `orders.py` | `views.py` |\n| | `data/*_source.py` | sources |"
    )
    files = ["plans/plan.py", "plans/__init__.py", "views.py", "data/tar_source.py", "backbones/coat.py"]
    assert rooms.off_the_map(page, files) == [
        "the map has plans/orders.py, which is not there",
        "the map lacks views.py",
    ]


def test_light_modules_load_no_timm() -> None:
    """One after the other, in one process."""
    heavy = dict.fromkeys(("plans", "geometry", "losses", "modes"), ("timm", "lightning", "torchvision"))
    heavy["data"] = ("timm", "lightning", "pyarrow", "sklearn")
    script = f"""
import importlib, sys
for module, heavy in {heavy}.items():
    importlib.import_module(f"patchcast.{{module}}")
    print(module, [name for name in heavy if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [f"{module} []" for module in heavy]


def test_reading_and_writing_files_needs_no_torch() -> None:
    code = "import sys, patchcast.files; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
