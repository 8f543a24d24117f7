"""Downloads from the Hugging Face hub, without long waits: if the hub does not answer, only its cache is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

PATIENCE_FOR_HUB = 5.0
"""Seconds to wait for an answer of the hub. Its own library retries for more than a minute."""
SAFE = ("config.json", "preprocessor_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.*")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def download(name: str) -> Path:
    """The folder of a model on the hub, `USER/NAME` or `USER/NAME@REVISION`, downloaded or from the hub's cache.

    Raises:
        ValueError: if the model is not available; the message says what is missing and where to put it.
    """
    repository, _, revision = name.partition("@")
    wanted: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    with hub_or_cache() as is_reached:
        try:
            folder = Path(huggingface_hub.snapshot_download(allow_patterns=[*SAFE], **wanted))
            if not any(folder.glob("model*.safetensors")):
                folder = Path(huggingface_hub.snapshot_download(allow_patterns=[*SAFE, *PICKLED], **wanted))
        except Exception as problem:  # the hub's own, the network's
            raise ValueError(missing(f"hf-hub:{name}", repository, is_reached=is_reached, reason=problem)) from problem
    return folder


def missing(words: str, repository: str | None, *, is_reached: bool, reason: Exception) -> str:
    """An error that says which weights are not available and what to do."""
    if is_reached or repository is None:
        return f"the weights of {words} cannot be had: {' '.join(str(reason).split())[:300]}"
    return (
        f"the weights of {words} are not in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does not "
        f"answer: where there is a network, run `hf download {repository} --local-dir FOLDER`, copy FOLDER to this "
        "machine, and give local-dir:FOLDER instead"
    )


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """While the context is open, the hub's library uses the network only if the hub answers; yields whether it does."""
    if constants.HF_HUB_OFFLINE:
        yield False
        return
    is_reached = _answers()
    constants.HF_HUB_OFFLINE = not is_reached
    try:
        yield is_reached
    finally:
        constants.HF_HUB_OFFLINE = False


def _answers() -> bool:
    """Whether the hub answers in time. In a thread, because looking up a name knows no time limit."""
    answers = []

    def ask() -> None:
        try:
            huggingface_hub.utils.get_session().head(constants.ENDPOINT, timeout=PATIENCE_FOR_HUB)
            answers.append(True)
        except Exception:  # whatever the network raises
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_FOR_HUB)
    return bool(answers)
