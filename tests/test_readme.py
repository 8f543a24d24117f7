"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readmes_python_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    output, mine = names["output"], names["mine"]
    assert output.embedding.shape == (8, 192)
    assert output.predictions.shape == (8, 1, 63, 48)
    assert mine.view.needs == "drop"
