"""A run's teacher: a trained network, built from the words of `--teacher`, whose features are the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.backbone import ImageBatch
from patchcast.data import EvalSet, Images
from patchcast.data.images import evenly_spaced
from patchcast.files import read_json, write_json
from patchcast.methods import METHODS, Method
from patchcast.modes import evaluating
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.build import evaluation
from patchcast.runs.timm_arguments import timm_args
from patchcast.starts import Started, load_start
from patchcast.targets import FrozenFeatures, Target

TEACHER_FILE = "teacher.json"
"""In a run folder: the words of its teacher, and a hash of the teacher's weights, which are not saved again."""
FITTED = 64
"""Training images on which the teacher's features are standardized."""


@dataclass(frozen=True)
class Teacher:
    """A teacher as a target, the words that name it, and a hash of its weights."""

    target: Target
    words: str
    digest: str

    def save(self, folder: Path) -> None:
        """Write what has to be the same when the run goes on."""
        write_json(folder / TEACHER_FILE, {"words": self.words, "digest": self.digest, "outputs": self.target.outputs})


class Absent(Target):
    """Holds the place of a teacher that cannot be had, so that a run can be opened for its backbone.

    Args:
        outputs: values per unit.
        channels: of the images.
        reason: why the teacher cannot be had; the error of `forward`.
    """

    has_noise_floor = False

    def __init__(self, outputs: int, channels: int, reason: str) -> None:
        super().__init__()
        self.outputs, self.reason = outputs, reason
        for name, shape in {"mean": (outputs,), "scale": (outputs,)}.items():
            self.register_buffer(name, torch.zeros(shape))
        for name in ("contrast", "offset"):
            self.register_buffer(name, torch.zeros(channels, 1, 1))

    def forward(self, images: ImageBatch) -> Float[Tensor, "B N T"]:
        raise ValueError(self.reason)


def check_teacher(recipe: Recipe, method: Method) -> None:
    """Check the options of a teacher against each other and the method.

    Raises:
        ValueError: if there is a teacher and the method takes none, or the method needs one and there is none.
    """
    if recipe.teacher is None:
        given = [name for name in ("teacher_blocks", "teacher_size") if getattr(recipe, name) is not None]
        if "teacher_weight" in recipe.method_args:
            given.append("teacher_weight")
        if given:
            raise ValueError(f"{given[0]} is an option of a teacher; give --teacher WORDS, or leave it out")
        if method.teacher == "required":
            raise ValueError(f"{recipe.method} predicts the features of a trained network: give --teacher WORDS")
    elif method.teacher == "no":
        takers = ", ".join(name for name, other in METHODS.items() if other.teacher != "no")
        raise ValueError(f"{recipe.method} takes no teacher; {takers} do")


def find_teacher(recipe: Resolved, images: Images | None = None) -> Teacher | None:
    """A recipe's teacher; None if it has none.

    Args:
        images: on which its features are standardized; None where a state with their mean and deviation is loaded.
    Raises:
        ValueError: if its weights cannot be had, or it does not suit the images.
    """
    if recipe.teacher is None:
        return None
    started = _load(recipe)
    backbone = started.backbone
    if recipe.teacher_blocks is not None:
        _check_blocks(recipe, backbone)
    with torch.device("meta"):
        stride = wrap(recipe.model, **timm_args(recipe)).stride
    target = FrozenFeatures(
        backbone,
        stride,
        blocks=recipe.teacher_blocks,
        size=_size(recipe) or backbone.image_size,
        statistics=((recipe.mean, recipe.std), (started.mean, started.std)),
        saved=False,
    )
    if images is not None:
        places = evenly_spaced(len(images), FITTED)
        shown = DataLoader(EvalSet(images, evaluation(recipe)), batch_size=len(places), sampler=places)
        target.fit(next(iter(shown))[0])
    return Teacher(target, recipe.teacher, started.fitted.digest)


def teacher_of_run(recipe: Resolved, folder: Path) -> Teacher | None:
    """The teacher of a run in a folder: `Absent` if it cannot be had any more, or has other weights now."""
    if recipe.teacher is None:
        return None
    begun = read_json(folder / TEACHER_FILE)
    try:
        found = find_teacher(recipe)
        assert found is not None
        check_same_teacher(found, folder)
    except ValueError as problem:
        target = Absent(begun["outputs"], recipe.channels, f"the teacher of the run in {folder} is gone: {problem}")
        return Teacher(target, recipe.teacher, begun["digest"])
    return found


def check_same_teacher(teacher: Teacher, folder: Path) -> None:
    """Raises:
    ValueError: if the run in the folder began with other weights of its teacher.
    """
    file = folder / TEACHER_FILE
    if file.is_file() and (begun := read_json(file))["digest"] != teacher.digest:
        raise ValueError(
            f"{teacher.words} holds other weights (digest {teacher.digest}) than when the run in {folder} began "
            f"({begun['digest']}); put those back, or choose another --out"
        )


def _size(recipe: Recipe) -> tuple[int, int] | None:
    return None if recipe.teacher_size is None else (recipe.teacher_size, recipe.teacher_size)


def _load(recipe: Resolved) -> Started:
    assert recipe.teacher is not None
    given: dict[str, Any] = {"in_chans": recipe.channels}
    if (size := _size(recipe)) is not None:
        given["img_size"] = size
    try:
        started = load_start(recipe.teacher, **given)
    except ValueError as problem:
        raise ValueError(f"the teacher cannot be had: {problem}") from problem
    if new := [name for name in started.fitted.adapted if name in started.fitted.new]:
        raise ValueError(
            f"the teacher {recipe.teacher} was not trained on images of {recipe.channels} channels: its {new[0]} would "
            "be random; give a teacher for such images"
        )
    return started


def _check_blocks(recipe: Resolved, backbone: Backbone) -> None:
    assert recipe.teacher_blocks is not None
    with evaluating(backbone):
        count = len(backbone.block_outputs(torch.zeros(1, backbone.channels, *backbone.image_size)))
    if wrong := [block for block in recipe.teacher_blocks if not 0 <= block < count]:
        raise ValueError(
            f"teacher_blocks has {wrong[0]}, and {recipe.teacher} has {count} blocks or stages: give 0 to {count - 1}"
        )
