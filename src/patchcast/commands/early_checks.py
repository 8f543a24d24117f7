"""Mistakes in what a command is given that can be seen without importing torch: names and paths that are not there."""

from __future__ import annotations

import difflib
import re
from importlib.metadata import version
from pathlib import Path

from patchcast.backbones.capabilities import METHOD_NAMES, OWN_NETWORKS
from patchcast.backbones.support import made_for, table
from patchcast.recipe import Recipe

CONFIG = "config.yaml"
WEIGHT_FILES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"}


def check_recipe(recipe: Recipe) -> None:
    """Check the range of every number, replace the method's name by the one it is known by, look for model and data.

    Raises:
        ValueError: in one sentence, if a number is out of its range, or one of them is not there.
    """
    recipe.check()
    recipe.method = method_called(recipe.method)
    if recipe.method not in OWN_NETWORKS:
        check_model(recipe.model)
    if recipe.start is not None and not (recipe.out / CONFIG).is_file():  # to resume takes no start
        check_network(recipe.start)
    check_data(recipe.data)


def method_called(name: str) -> str:
    """The method of this name, whatever its case and dashes.

    >>> method_called("I-JEPA"), method_called("MAE")
    ('ijepa', 'mae')

    Raises:
        ValueError: if there is none; names the nearest.
    """
    plain = {_plain(each): each for each in METHOD_NAMES}
    if _plain(name) in plain:
        return plain[_plain(name)]
    near = difflib.get_close_matches(name.lower(), METHOD_NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHOD_NAMES)}"
    raise ValueError(f"no method is called {name!r}; {hint}")


def check_run(run: Path) -> None:
    """Raises:
    ValueError: if this is no run's folder.
    """
    if not run.exists():
        raise ValueError(f"{run} is not there; give the folder of a run")
    if not (run / CONFIG).exists():
        raise ValueError(f"{run} holds no run of patchcast: it has no {CONFIG}")


def check_network(name: str) -> None:
    """Raises:
    ValueError: if these are no words of a start: a path that is not there, or a name that, as far as the table of
        timm's architectures goes, is no model's.
    """
    name = name.partition("=")[2] or name
    if name.startswith("hf-hub:"):
        return
    is_folder = name.startswith("local-dir:")
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if is_folder or "/" in name or path.suffix in WEIGHT_FILES:
        if not path.exists():
            raise ValueError(f"{path} is not there; give a run folder, a folder or file of weights, or a timm model")
    elif not path.exists():
        check_model(name)


def check_model(name: str) -> None:
    """Raises:
    ValueError: if the installed timm has no architecture of this name; names the nearest.
    """
    if ":" in name or made_for() != version("timm"):  # a hub or folder, or the table is of another timm
        return
    known = [row.name for row in table()]
    architecture = name.partition(".")[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it knows {len(known)}, see `patchcast models`"
        raise ValueError(f"timm has no model {name!r}; {hint}")


def check_data(source: str | None) -> None:
    """Raises:
    ValueError: if a source of images is a path that is not there.
    """
    if source is None or not source.startswith((".", "/", "~")):
        return  # a name, a URL, a pattern, or a path that only the reader can tell from these
    if not re.search(r"[*?{\[]", source) and not Path(source).expanduser().exists():
        raise ValueError(f"{source} is not there; --data takes a folder of images, parquet or tar files, or hf:NAME")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
