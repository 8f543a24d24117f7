"""The order of images and their augmentation, as a function of the seed and the step only.

A run that is stopped and resumed at step t, or has other workers or ranks, gets the very same batches: nothing
here keeps a state, and no global random state is read or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64, Num
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from patchcast.data.batched import collate
from patchcast.data.images import Images, Unreadable
from patchcast.data.seeds import mix_seed
from patchcast.data.transforms import Cut
from patchcast.data.waiting import PatientLoader


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), the t-th of which depends on the seed and on t, and on nothing else.

    >>> sampler = EpochSampler(10, 4, seed=0, steps=5)
    >>> len(sampler), sampler.steps_per_epoch, [len({index for _, index in batch}) for batch in sampler]
    (5, 2.0, [4, 4, 4, 4, 4])
    >>> list(EpochSampler(10, 4, seed=0, steps=5, start_step=3)) == list(sampler)[3:]
    True

    Each epoch has a permutation of its own. A batch never spans two epochs: the up to `batch_size - 1` images left
    over at the end of one are not seen in it (other ones in each epoch). If there are fewer images than a batch takes,
    batches are cut from the permutations of one epoch after another without a gap, so that a batch holds some images
    several times, each time augmented in another way.

    Args:
        length: how many images there are.
        batch_size: images of one step, over all ranks together.
        seed: of the run.
        steps: of the whole run; the last batch is that of step `steps - 1`.
        start_step: the first step to give a batch for; 0, or where a stopped run resumes.
        rank: which part of each batch is given: the `rank`-th of `world` equal ones, in order.
        world: number of ranks.
        accumulate: pieces in which a rank is given its part, where it is too large for a device.
    Raises:
        ValueError: if there are no images, or that many equal pieces cannot be cut from a batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"needs at least one image and one image a batch; got {length} and {batch_size}")
        if accumulate < 1 or batch_size % (world * accumulate):
            pieces = f" in {accumulate} pieces each" if accumulate != 1 else ""
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} ranks{pieces}")
        if not 0 <= rank < world:
            raise ValueError(f"needs 0 <= rank < world; got rank {rank} of {world}")
        if not 0 <= start_step <= steps:
            raise ValueError(f"needs 0 <= start_step <= steps; got {start_step} and {steps}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.steps = steps
        self.start_step = start_step
        self.rank = rank
        self.world = world
        self.accumulate = accumulate
        self._latest: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> float:
        """A whole number, unless a batch is larger than an epoch."""
        return float(self.length // self.batch_size or self.length / self.batch_size)

    @property
    def images(self) -> int:
        """How many it gives to its rank, from the first step to the last."""
        return (self.steps - self.start_step) * self.batch_size // self.world

    def __len__(self) -> int:
        return (self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.steps):
            for piece in range(self.accumulate):
                yield self.batch(step, piece)

    def batch(self, step: int, piece: int = 0) -> list[tuple[int, int]]:
        """A piece of this rank's part of the batch of a step."""
        share = self.batch_size // (self.world * self.accumulate)
        before = (piece * self.world + self.rank) * share
        if self.batch_size > self.length:
            first = step * self.batch_size + before
            places = [divmod(place, self.length) for place in range(first, first + share)]
        else:
            epoch, batch = divmod(step, self.length // self.batch_size)
            first = batch * self.batch_size + before
            places = [(epoch, place) for place in range(first, first + share)]
        return [(epoch, self._permutation(epoch)[place]) for epoch, place in places]

    def place(self, step: int) -> None:
        """Nothing: any image can be read at any time, so a step's number is all that a run needs to resume."""

    def _permutation(self, epoch: int) -> list[int]:
        if self._latest[0] != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
            self._latest = (epoch, torch.randperm(self.length, generator=generator).tolist())
        return self._latest[1]


@runtime_checkable
class Examples(Protocol):
    """What a `TrainSet` augments: `Images`, or what was made of them once and for all (`CodeSet`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...

    def preload(self) -> bool: ...


@runtime_checkable
class Sampled(Protocol):
    """A data set that knows in which order its images come."""

    def sampler(self, batch_size: int, **how: Any) -> Any: ...


class TrainSet(Dataset[tuple[Tensor | Cut, int]]):
    """Augmented images, by the keys of an `EpochSampler`; the same key always gives the same pixels.

    >>> from patchcast.data import Augment, open_images
    >>> train_set = TrainSet(open_images("digits"), Augment((16, 16), (0.4, 1.0), True, (0.3,), (0.4,)), seed=0)
    >>> image, label = train_set[3, 7]
    >>> image.shape, torch.equal(image, train_set[3, 7][0]), torch.equal(image, train_set[4, 7][0])
    (torch.Size([1, 16, 16]), True, False)

    Args:
        augment: is called with an image and `mix_seed(seed, epoch, index)`.
        seed: of the run.
    """

    def __init__(self, images: Examples, augment: Callable[[Tensor, int], Tensor | Cut], seed: int) -> None:
        self.images = images
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def sampler(self, batch_size: int, *, place: dict[str, Any] | None = None, **how: int) -> EpochSampler:
        """Which of its images come when; `place` is for what is read in order (`StreamSet`)."""
        return EpochSampler(len(self), batch_size, **how)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Num[Tensor, "C H W"] | Cut, int]:
        epoch, index = key
        image, label = self.images[index]
        return self.augment(image, mix_seed(self.seed, epoch, index)), label


class EvalSet(Dataset[tuple[Tensor, int]]):
    """Images through a transform without chance, with their labels.

    `eval_set[i]` takes the next readable image of the same images for one that cannot be read, which is right for
    pictures; to count, use an `EvalLoader`, which leaves it out.

    >>> from patchcast.data import Evaluate, open_images
    >>> image, label = EvalSet(open_images("digits", split="test"), Evaluate((8, 8), (0.3,), (0.4,)))[0]
    >>> image.shape, image.dtype
    (torch.Size([1, 8, 8]), torch.float32)
    """

    def __init__(self, images: Images, transform: Callable[[Tensor], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float32[Tensor, "C H W"], int]:
        image, label = self.images[index]
        return self.transform(image), label


class EvalLoader:
    """Batches (images, labels) of an `EvalSet` in its order. Unreadable images are left out, so a batch may be smaller
    than `batch_size`; they are then in `images.unreadable`, whichever process could not read them.

    >>> from patchcast.data import Evaluate, open_images
    >>> test = EvalLoader(EvalSet(open_images("digits", split="test"), Evaluate((8, 8), (0.3,), (0.4,))), 256)
    >>> [images.shape for images, labels in test]
    [torch.Size([256, 1, 8, 8]), torch.Size([104, 1, 8, 8])]

    Args:
        batch_size: largest number of images in a batch.
        workers: processes that decode.
    """

    def __init__(self, eval_set: EvalSet, batch_size: int, workers: int = 0) -> None:
        self.eval_set = eval_set
        self._loader = PatientLoader(
            _Attempts(eval_set), batch_size, num_workers=workers, collate_fn=_collate_readable,
            generator=torch.Generator(),
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of batches, if every image can be read."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Float32[Tensor, "B C H W"], Int64[Tensor, " B"]]]:
        for batch, unreadable in self._loader:
            for bad in unreadable:
                self.eval_set.images.note(bad)
            if batch is not None:
                yield batch


class _Attempts(Dataset[Any]):
    """Examples of an `EvalSet`, or `Unreadable` in their place."""

    def __init__(self, eval_set: EvalSet) -> None:
        self.eval_set = eval_set

    def __len__(self) -> int:
        return len(self.eval_set)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Unreadable:
        example = self.eval_set.images.attempt(index)
        if isinstance(example, Unreadable):
            return example
        return self.eval_set.transform(example.image), example.label


def _collate_readable(attempts: list[Any]) -> tuple[Any, list[Unreadable]]:
    unreadable = [attempt for attempt in attempts if isinstance(attempt, Unreadable)]
    readable = [attempt for attempt in attempts if not isinstance(attempt, Unreadable)]
    return (tuple(default_collate(readable)) if readable else None), unreadable


def loader(train_set: TrainSet | Dataset[Any], sampler: Sampler[Any], workers: int) -> DataLoader[Any]:
    """Batches (images, labels) in the sampler's order, the same ones for any number of workers.

    >>> from patchcast.data import Augment, open_images
    >>> train_set = TrainSet(open_images("digits"), Augment((16, 16), (0.4, 1.0), True, (0.3,), (0.4,)), seed=0)
    >>> batches = loader(train_set, EpochSampler(len(train_set), 32, seed=0, steps=2), workers=0)
    >>> [images.shape for images, labels in batches]
    [torch.Size([32, 1, 16, 16]), torch.Size([32, 1, 16, 16])]

    If the workers give no batch for a minute, a line on stderr says which processes are waited for. Small sources are
    decoded into memory first (`Images.preload`), if every image will be read twice or more.
    """
    is_read_again = isinstance(sampler, EpochSampler) and sampler.images >= 2 * sampler.length
    if is_read_again and isinstance(train_set, TrainSet):
        train_set.images.preload()
    return PatientLoader(
        train_set,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a base seed for its workers, which nothing here uses: not from the run's own generator.
        generator=torch.Generator(),
    )
