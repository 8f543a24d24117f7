"""Pictures of what the network predicts, as the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from patchcast.training.loggers import log_picture
from patchcast.training.looks import Look


class Pictures(Look):
    """Draws the same images at every evaluation: into a folder, as `step=N.png`, and to the loggers that show pictures.

    Args:
        draw: the picture by the network as it is, on the device where it lies.
        folder: where they go.
        every: optimiser steps between two.
    """

    def __init__(self, draw: Callable[[torch.device], Image.Image], folder: Path, *, every: int) -> None:
        super().__init__(every=every)
        self.draw, self.folder = draw, folder

    def look(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        picture = self.draw(module.device)
        if trainer.is_global_zero:
            self.folder.mkdir(exist_ok=True)
            picture.save(self.folder / f"step={trainer.global_step}.png")
            for logger in trainer.loggers:
                log_picture(logger, picture, trainer.global_step - 1)
        return {}
