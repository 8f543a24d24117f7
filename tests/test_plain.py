"""What a terminal shows of warnings: ours as one plain line each, and nothing of other libraries."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.console import Console

from patchcast.cli import lack_of_memory, main
from patchcast.data.names import escape, printable
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
    assert lack_of_memory(MemoryError()) == "out of memory: no more is left; a smaller batch, image or model needs less"
    assert lack_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")).startswith(
        "out of memory: CUDA"
    )
    assert lack_of_memory(RuntimeError("shapes do not match")) == ""


def test_a_terminal_sees_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b]52;c;x\x07\nb\u202egpj\x9b2J[/red]"
    assert main(["data", "check", f"/nowhere/{name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert r"a\x1b]52;c;x\x07\nb\u202egpj\x9b2J[/red] is not there" in line
    assert printable(name) == r"a\x1b]52;c;x\x07\nb\u202egpj\x9b2J[/red]"
    console = Console(file=io.StringIO())
    console.print(f"[bold]{escape(name)}[/]")
    assert "\x1b" not in console.file.getvalue()
    assert "[/red]" in console.file.getvalue()
