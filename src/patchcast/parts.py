"""Work done part by part, so that a command that was stopped resumes after the last part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from patchcast.files import read_json, write_text

IMAGES_PER_PART = 256
"""Number of images per part, and the maximum number that is lost when the command is stopped."""


def claim_parts(parts: Path, out: Path, plan: dict[str, Any], suffix: str, what: str) -> int:
    """How many parts of the same work are there already.

    Args:
        parts: the folder of parts; it is created, with its plan, if there is none.
        plan: all that the result depends on, as JSON has it: parts of another plan are not mixed with these.
        suffix: of the files of parts.
        what: the result, for the sentence that refuses another plan.
    Raises:
        ValueError: if the folder holds parts of another plan.
    """
    config = parts / "plan.json"
    if not config.exists():
        write_text(config, json.dumps(plan))
        return 0
    before = read_json(config)
    differing = [name for name in plan if plan[name] != before.get(name)]
    if differing:
        raise ValueError(
            f"{parts} holds a part of other {what} ({', '.join(differing)} differ); "
            f"delete it, or choose another --out than {out}"
        )
    return len(list(parts.glob(f"[0-9]*{suffix}")))


def note_plan(now: dict[str, Any], begun: Path, finished: Path, *, kind: str) -> bool:
    """Write down what a training in a folder depends on; False if the same training is finished there.

    Args:
        now: its "plan" must equal that of the training that the folder holds, if there is one.
        begun: the file for it.
        finished: the file that a finished training has.
        kind: what is trained, for the sentence that refuses another plan.
    Raises:
        ValueError: if the folder holds a training of another plan.
    """
    now = json.loads(json.dumps(now))  # tuples are lists there
    if begun.exists():
        before = read_json(begun)["plan"]
        differing = [name for name in now["plan"] if now["plan"][name] != before.get(name)]
        if differing:
            raise ValueError(
                f"{begun.parent} holds another {kind} ({', '.join(differing)} differ); choose another --out, or "
                "delete it"
            )
        return not finished.exists()
    write_text(begun, json.dumps(now, indent=2) + "\n")
    return True
