"""What a terminal shows of warnings: ours as one plain line each, and nothing of other libraries."""

from __future__ import annotations

import warnings

import pytest

from patchcast.cli import out_of_memory
from patchcast.plain import MOST_SKIPPED, Plain


def warn_from(module: str, text: str) -> None:
    """Warn as code of this module would; each line of a program warns once, so every text has its own."""
    exec(compile("import warnings\nwarnings.warn(text)", f"<{text}>", "exec"), {"__name__": module, "text": text})


def test_our_warnings_are_plain_lines_and_others_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", Plain())
        warn_from("patchcast.data.folder", "passed over\n 3 files")
        warn_from("patchcast.data.folder", "passed over\n 3 files")
        warn_from("torch.optim", "the scheduler is called before the optimizer")
        for number in range(MOST_SKIPPED + 3):
            warn_from("patchcast.data.images", f"skipped {number}.png: empty file")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "patchcast: warning: passed over 3 files"
    assert lines[1:-1] == [f"patchcast: warning: skipped {number}.png: empty file" for number in range(MOST_SKIPPED)]
    assert lines[-1] == "patchcast: warning: more images are skipped; `patchcast data check` lists them"


def test_a_lack_of_memory_is_one_sentence() -> None:
    assert out_of_memory(MemoryError()) == "out of memory: no more is left; a smaller batch, image or model needs less"
    assert out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")).startswith(
        "out of memory: CUDA"
    )
    assert out_of_memory(RuntimeError("shapes do not match")) == ""
