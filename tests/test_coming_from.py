"""docs/coming-from/: their code and ours, both run as they stand there, give the same numbers."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

PAGES = Path(__file__).resolve().parents[1] / "docs" / "coming-from"
PEERS = {"lightly": "lightly", "timm": "timm", "torchtune": "torchtune", "stable-pretraining": "stable_pretraining"}
BLOCK = re.compile(r"^```py\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pairs() -> list[Any]:
    """The peer of a page, their code and ours."""
    found = []
    for peer in PEERS:
        blocks = BLOCK.findall((PAGES / f"{peer}.md").read_text())
        assert blocks, peer
        assert len(blocks) % 2 == 0, peer
        for number, (theirs, ours) in enumerate(zip(blocks[::2], blocks[1::2], strict=True), start=1):
            found.append(pytest.param(peer, theirs, ours, id=f"{peer} {number}"))
    return found


def test_every_page_is_tested() -> None:
    """That of transformers has a test of its own, in tests/imagegpt."""
    assert {page.stem for page in PAGES.glob("*.md")} == {*PEERS, "index", "transformers"}


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
