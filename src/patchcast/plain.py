"""Texts for a terminal: names without control characters, warnings as one plain line. Imports nothing heavy."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from types import FrameType

SKIPPED, MOST_SKIPPED = "skipped ", 5
"""Images that cannot be read are named in warnings that begin so, the first five of them: a run lists all."""
NOISY = ("timm", "huggingface_hub", "transformers", "datasets", "lightning.fabric")
"""Libraries whose log lines repeat what our errors say, such as each attempt of a download."""


UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that move the cursor, color what follows or turn its direction: names of files may hold them."""


def visible(text: str, besides: str = "") -> str:
    r"""Text with control characters written out, so that it cannot command a terminal or hide a part of itself.

    >>> visible("a\x1b[2Jb"), visible("a\nb"), visible("a\nb", besides="\n")
    ('a\\x1b[2Jb', 'a\\nb', 'a\nb')

    Args:
        besides: characters that stay.
    """
    return UNSEEN.sub(lambda found: found[0] if found[0] in besides else repr(found[0])[1:-1], text)


def speak_plainly() -> None:
    """Print our own warnings without file and line, each text once; those of other libraries are left out.

    `python -W default -m patchcast` or `PYTHONWARNINGS=default` shows all of them as Python does.
    """
    if sys.warnoptions:
        return
    warnings.showwarning = Plain()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class Plain:
    """Replaces `warnings.showwarning`: one line on stderr for each different text."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.skipped = 0

    def __call__(self, message: Warning | str, *_: object, **__: object) -> None:
        text = visible(" ".join(str(message).split()))
        if text in self.texts or not _is_ours():
            return
        self.texts.add(text)
        self.skipped += text.startswith(SKIPPED)
        if not text.startswith(SKIPPED) or self.skipped <= MOST_SKIPPED:
            print(f"patchcast: warning: {text}", file=sys.stderr, flush=True)
        elif self.skipped == MOST_SKIPPED + 1:
            print("patchcast: warning: more images are skipped; `patchcast data check` lists them", file=sys.stderr)


def _is_ours() -> bool:
    """Whether code of this package called `warnings.warn`: its `stacklevel` may name a file of another one."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "warnings":
        frame = frame.f_back
    while frame is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    if frame is None:
        return False
    return str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]
