"""TensorBoard and Weights & Biases, where these are asked for; `log.py` is always there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image


def check_installed(package: str) -> None:
    """Refuse at the beginning what would fail after the first steps.

    >>> check_installed("tensorboarding")
    Traceback (most recent call last):
    ValueError: --tensorboarding needs a package that is not here: pip install 'patchcast[tensorboarding]'
    """
    if find_spec(package) is None:
        raise ValueError(f"--{package} needs a package that is not here: pip install 'patchcast[{package}]'")


def tensorboard(out: Path) -> Logger:
    """Into the folder `tensorboard` of the run's."""
    return TensorBoardLogger(out, name="", version="tensorboard")


def wandb(project: str, out: Path, config: dict[str, Any]) -> Logger:
    """Into a project of Weights & Biases. A run that goes on is the same run there, by the folder it has left here.

    wandb's own environment variables apply: `WANDB_MODE=offline`, `WANDB_ENTITY`, ...

    Raises:
        ValueError: if a run cannot be opened there.
    """
    from wandb.errors import Error

    earlier = sorted(out.glob("wandb/*run-*-*"))
    number = earlier[-1].name.rpartition("-")[2] if earlier else None
    logger = WandbLogger(project=project, name=out.name, save_dir=out, id=number, config=config)
    try:
        _ = logger.experiment  # opened now, by the first process alone
    except Error as problem:
        told = str(problem).partition("\n")[0]
        raise ValueError(f"--wandb {project}: {told} Without a network, set WANDB_MODE=offline.") from problem
    return logger


@contextmanager
def closing(loggers: list[Logger]) -> Iterator[list[Logger]]:
    """Close runs that would otherwise be open until the process ends, and take the rows of its next run."""
    try:
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()


def log_picture(logger: Logger, picture: Image.Image, step: int) -> None:
    """Show a picture at a step; a log of numbers has no place for it."""
    if isinstance(logger, TensorBoardLogger):
        import numpy as np

        logger.experiment.add_image("pictures", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
    if isinstance(logger, WandbLogger):
        logger.log_image("pictures", [picture], step=step)
