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
