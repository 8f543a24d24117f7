"""docs/coming-from.md: their code and ours, both run as they stand there, give the same numbers."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming-from.md"
PEERS = {"lightly": "lightly", "timm": "timm", "torchtune": "torchtune", "stable-pretraining": "stable_pretraining"}
BLOCK = re.compile(r"^```py\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pairs() -> list[Any]:
    """The heading of a section, their code and ours."""
    found = []
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading = section.split("\n", 1)[0].strip()
        if heading in PEERS:  # transformers' section has a test of its own
            blocks = BLOCK.findall(section)
            assert len(blocks) % 2 == 0, heading
            for number, (theirs, ours) in enumerate(zip(blocks[::2], blocks[1::2], strict=True), start=1):
                found.append(pytest.param(heading, theirs, ours, id=f"{heading} {number}"))
    return found


def test_every_section_is_there() -> None:
    assert {pair.values[0] for pair in pairs()} == set(PEERS)


@pytest.mark.parametrize(("heading", "theirs", "ours"), pairs())
def test_the_same_numbers(heading: str, theirs: str, ours: str) -> None:
    try:
        __import__(PEERS[heading])
    except ImportError:
        pytest.skip(f"{heading} is the peer here")
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers
        exec(compile(theirs, f"{heading}, theirs", "exec"), names)
        exec(compile(ours, f"{heading}, ours", "exec"), names)
    assert names["ours"].abs().sum() > 0
    torch.testing.assert_close(names["ours"], names["theirs"], atol=1e-5, rtol=1e-5)
