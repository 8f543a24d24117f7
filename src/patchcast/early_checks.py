"""Checks of options that do not need torch: ranges, names, and paths that do not exist."""

from __future__ import annotations

import difflib
import re
from importlib.metadata import version
from pathlib import Path

from patchcast.backbones.capabilities import AUTO, METHOD_NAMES, NEEDS, OWN_NETWORKS, is_imagegpt
from patchcast.backbones.support import made_for, table
from patchcast.folder_files import BEGUN, CLASSES, CONFIG, SEGMENTER
from patchcast.recipe import Recipe

WEIGHT_FILES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"}
PACKAGED_NAMES = ("digits", "mnist-5k")
"""The sources of `patchcast.data.digits.PACKAGED`; a test keeps the two equal."""


def check_recipe(recipe: Recipe) -> None:
    """Check the range of every number, normalize the method's name, and check that model and data exist.

    Raises:
        ValueError: if a number is out of range, or one of them does not exist.
    """
    recipe.check()
    recipe.method = AUTO if _plain(recipe.method) == AUTO else method_called(recipe.method)
    # `runs.codes` checks ImageGPT's own networks.
    if recipe.model and recipe.method not in OWN_NETWORKS and not is_imagegpt(recipe.model):
        check_model(recipe.model)
        if recipe.method != AUTO:
            check_suits(recipe.model, recipe.method)
    if recipe.start is not None and not (recipe.out / CONFIG).is_file():  # to resume takes no start
        check_network(recipe.start)
    check_data(recipe.data)


def method_called(name: str) -> str:
    """The name of a method, ignoring case and dashes.

    >>> method_called("I-JEPA"), method_called("MAE")
    ('ijepa', 'mae')

    Raises:
        ValueError: if there is none; suggests a similar name.
    """
    plain = {_plain(method): method for method in METHOD_NAMES}
    if _plain(name) in plain:
        return plain[_plain(name)]
    near = difflib.get_close_matches(name.lower(), METHOD_NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHOD_NAMES)}"
    raise ValueError(f"no method is called {name!r}; {hint}")


def check_run(run: Path) -> None:
    """Check that a folder holds a run.

    Raises:
        ValueError: if it does not.
    """
    if not run.exists():
        raise ValueError(f"there is no folder {run}; give the folder of a run")
    if not (run / CONFIG).exists():
        raise ValueError(f"{run} holds no run of patchcast: it has no {CONFIG}")


def check_reported(path: Path) -> None:
    """Check that there is something to report on: a run, a fine-tuned model, or a table of compare.

    Raises:
        ValueError: if there is not.
    """
    if path.suffix == ".parquet" and path.is_file():
        return
    if (path / BEGUN).exists() and not (path / CONFIG).exists():
        return
    if not path.exists() or (path.is_dir() and not (path / CONFIG).exists()) or path.is_file():
        raise ValueError(
            f"{path} is neither a run, nor a folder of patchcast finetune, nor a table of patchcast compare; other "
            f"weights have no results of their own: patchcast compare {path} --data LABELED --out compared.parquet "
            "measures them"
        )


def check_exported(folder: Path) -> None:
    """Raises:
    ValueError: if this is neither a run, nor a fine-tuned model, nor the words of other weights.
    """
    if (folder / CLASSES).exists() or (folder / SEGMENTER).exists():
        return
    if (folder / BEGUN).exists():
        raise ValueError(f"fine-tuning has not finished in {folder}; the same command resumes it")
    if folder.is_dir() and not any((folder / name).exists() for name in (CONFIG, "config.json")):
        raise ValueError(f"{folder} holds no run of patchcast ({CONFIG}), no fine-tuned model and no other weights")
    check_network(str(folder))


def check_network(name: str) -> None:
    """Check the words that name a network.

    Raises:
        ValueError: if they are a path that is not there, or a name that is not in the table of timm's architectures.
    """
    name = name.partition("=")[2] or name
    if name.startswith("hf-hub:"):
        return
    is_folder = name.startswith("local-dir:")
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if is_folder or "/" in name or path.suffix in WEIGHT_FILES:
        if not path.exists():
            kind = "file" if path.suffix in WEIGHT_FILES else "folder"
            raise ValueError(f"there is no {kind} {path}; give the folder of a run, weights, or a model of timm")
    elif not path.exists():
        check_model(name)


def check_classifier(name: str) -> None:
    """Raises:
    ValueError: if this is neither a classifier's folder, nor a run's, nor a model of timm.
    """
    if (Path(name) / CLASSES).exists() or (Path(name) / BEGUN).exists():
        return
    if Path(name).is_dir() and not any((Path(name) / file).exists() for file in (CONFIG, "config.json")):
        raise ValueError(f"{name} holds neither a classifier of patchcast finetune ({CLASSES}) nor a run ({CONFIG})")
    check_network(name)


def check_model(name: str) -> None:
    """Check the name of a timm model.

    Raises:
        ValueError: if the installed timm has no such architecture; suggests similar names.
    """
    if ":" in name or made_for() != version(
        "timm"
    ):  # on the hub or in a folder, or the table is for another version of timm
        return
    known = [row.name for row in table()]
    architecture = name.partition(".")[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it knows {len(known)}, see `patchcast models`"
        raise ValueError(f"timm has no model {name!r}; {hint}")


def check_suits(model: str, method: str) -> None:
    """Check that a model of the table can run a method.

    Raises:
        ValueError: if it cannot; names the methods that it can run.
    """
    rows = [row for row in table() if row.name == model.partition(".")[0]] if made_for() == version("timm") else []
    if rows and not rows[0].suits(method):
        others = [name for name in NEEDS if rows[0].suits(name)]
        raise ValueError(
            f"{model} cannot run {method}; it can run {', '.join(others)}. "
            f"`patchcast models --method {method}` lists the models that can"
        )


def check_data(source: str | None) -> None:
    """Check the path of a source of images.

    Raises:
        ValueError: if it does not exist.
    """
    if source is None or source in PACKAGED_NAMES or re.search(r"[*?{\[:]", source):
        return  # hf:NAME, a URL, or a pattern: only the reader knows
    if not Path(source).expanduser().exists():
        raise ValueError(f"{source} is not there; --data takes a folder of images, parquet or tar files, or hf:NAME")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
