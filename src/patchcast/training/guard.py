"""Ends a run whose loss is NaN or infinite, before a good checkpoint is overwritten."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BAD_BATCH = "bad-batch.safetensors"
ADVICE = "try a lower lr, more warmup, a smaller clip, or fp32"


class NotFinite(ValueError):
    """A loss, a feature or a parameter has become NaN or infinite."""


class Guard:
    """Records the first loss that is not finite, and its images.

    `note` reads nothing from the device, so there is no GPU sync: `torch.where` selects the step, its loss and its
    images. `check` reads them at every row of the log, before every evaluation and before every checkpoint, so that no
    checkpoint contains weights after such a loss.

    Args:
        out: the run folder, where the images are saved.
        group: a process group of all ranks on the CPU; None for a single process.
    """

    def __init__(self, out: Path, group: dist.ProcessGroup | None = None) -> None:
        self.out, self.group = out, group
        self.is_fine: Tensor | None = None

    def note(self, step: int, loss: Tensor, images: Any) -> None:
        """Record the loss of a step, or of one accumulated piece."""
        loss, images = loss.detach(), images if isinstance(images, Tensor) else None
        if self.is_fine is None:
            self.is_fine = torch.isfinite(loss)
            self.step, self.loss, self.images = torch.full_like(loss, step, dtype=torch.long), loss, images
            return
        was_fine = self.is_fine
        self.is_fine = was_fine & torch.isfinite(loss)
        self.step, self.loss = torch.where(was_fine, step, self.step), torch.where(was_fine, loss, self.loss)
        if images is None or self.images is None or images.shape != self.images.shape:
            self.images = images
        else:
            self.images = torch.where(was_fine, images, self.images)

    def check(self, step: int, parameters: Iterable[tuple[str, nn.Parameter]] = ()) -> None:
        """Raise `NotFinite` on all ranks if a recorded loss or one of these parameters is not finite.

        Parameters are checked because a gradient may overflow in a step whose loss is finite.
        """
        problem = None
        named = [(name, _local(parameter)) for name, parameter in parameters]
        if self.is_fine is not None and not self.is_fine:
            problem = f"the loss of step {int(self.step)} is {float(self.loss)}"
        elif named and not torch.stack([torch.isfinite(value).all() for _, value in named]).all():
            bad = [name for name, value in named if not torch.isfinite(value).all()]
            problem = f"after step {step}, {len(bad)} parameters are NaN or infinite ({bad[0]} first)"
        problems = [problem]
        if self.group is not None:
            problems = [None] * dist.get_world_size()
            dist.all_gather_object(problems, problem, group=self.group)
        first = next((rank for rank, found in enumerate(problems) if found is not None), None)
        if first is not None:
            self.fail(str(problems[first]), has_images=first == (dist.get_rank() if self.group is not None else 0))

    def fail(self, problem: str, *, has_images: bool = True) -> NoReturn:
        """Save the images and raise."""
        saved = ""
        images = None if self.is_fine is None else self.images
        if images is not None:
            saved = f" its images are in {self.out / BAD_BATCH};"
            if has_images:
                save_file({"images": images.contiguous().cpu()}, self.out / BAD_BATCH)
        raise NotFinite(f"{problem};{saved} the last good checkpoint is kept: {ADVICE}")


def _local(parameter: nn.Parameter) -> Tensor:
    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value
