"""Targets: what is predicted for every unit of the image. They do not depend on plans."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from patchcast.backbones.backbone import Backbone, CannotError, ImageBatch, pixels_of
from patchcast.geometry import Grid, to_rows
from patchcast.modes import evaluating
from patchcast.tokenizers.base import DrawingTokenizer, Tokenizer

Statistics = tuple[Sequence[float], Sequence[float]]


class Target(nn.Module):
    """`(images) -> one vector for every unit of the grid`.

    Attributes:
        outputs: number of values to predict per unit.
        has_noise_floor: whether the loss on noise has a floor. It has none if the target is learned and can collapse.
        is_drawn: whether predictions can be drawn: `to_pixels`.
        from_image: what `to_pixels` takes from the image itself, as text for the caption of a picture.
        values: number of values of a target: that of `outputs`, or 1 for a code.
        follows: whether `update` does something, so that a training loop must call it.
    """

    outputs: int
    has_noise_floor: bool = True
    is_drawn: bool = False
    from_image: str = ""

    @property
    def values(self) -> int:
        return self.outputs

    @property
    def follows(self) -> bool:
        return type(self).update is not Target.update

    def forward(self, images: ImageBatch) -> Num[Tensor, "B N T"]:
        """Targets of every unit, row by row: vectors, or a code each."""
        raise NotImplementedError

    def to_pixels(
        self, predictions: Float[Tensor, "B N T"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """Predictions of every unit as pixels; what targets omit (mean and contrast) is taken from `images`."""
        raise ValueError(f"{type(self).__name__} are not pixels: their predictions cannot be drawn")

    def blind(self, targets: Num[Tensor, "B G P T"]) -> Float[Tensor, "B G P K"]:
        """The best prediction of these targets without an image: what an honest method can reach on noise."""
        return torch.zeros_like(targets)

    def block_modules(self) -> list[nn.Module]:
        """Those of a teacher; see `Backbone.block_modules`."""
        return []

    def update(self, backbone: Backbone) -> None:
        """Called by `Pretrainer.after_step`: updates a target that follows the backbone."""


class Pixels(Target):
    """The pixels of each unit, in the order row, column, channel.

    >>> import torch
    >>> Pixels((2, 2), channels=1, normalize=False)(torch.arange(8.).view(1, 1, 2, 4)).tolist()
    [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]

    Args:
        stride: pixels per side of a unit, (rows, cols).
        normalize: subtract each unit's mean and divide by its standard deviation: sqrt(unbiased variance + 1e-6)
            (He et al. 2022, section 3, "reconstruction target").
    Raises:
        ValueError: if `normalize` is given for units of one value.
    """

    is_drawn = True

    def __init__(self, stride: tuple[int, int], *, channels: int, normalize: bool = True) -> None:
        super().__init__()
        self.stride, self.channels, self.normalize = stride, channels, normalize
        self.outputs = stride[0] * stride[1] * channels
        if normalize:
            self.from_image = "normalized targets: the mean and contrast of each unit are the image's own"
        if normalize and self.outputs < 2:
            raise ValueError("a unit of one pixel and one channel has no spread to normalize by; use normalize=False")

    def forward(self, images: ImageBatch) -> Float[Tensor, "B N T"]:
        units = patchify(pixels_of(images), self.stride)
        if not self.normalize:
            return units
        variance, mean = _spread(units)
        return (units - mean) / (variance + 1e-6).sqrt()

    def to_pixels(
        self, predictions: Float[Tensor, "B N T"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        (down, right), (height, width) = self.stride, images.shape[-2:]
        if self.normalize:
            variance, mean = _spread(patchify(images, self.stride))
            predictions = predictions * (variance + 1e-6).sqrt() + mean
        return unpatchify(predictions, Grid(height // down, width // right), self.stride)


class HOG(Target):
    """Histograms of oriented gradients of each unit (Wei et al. 2022, "Masked Feature Prediction for Self-Supervised
    Visual Pre-Training"; Dalal and Triggs 2005).

    Gradients are central differences, 0 across the border of the image. Every pixel adds the length of its gradient to
    the bin of its direction, which is one of `bins` between 0 and 180 degrees. The histogram of each cell and channel
    has length one. These are the numbers of scikit-image's `hog` with blocks of one cell and `block_norm="L2"`.

    >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # brighter to the right: all gradients in the first bin
    >>> HOG((8, 8), channels=1, bins=4)(ramp).tolist()
    [[[1.0, 0.0, 0.0, 0.0]]]

    Args:
        stride: pixels per side of a unit, (rows, cols).
        bins: directions of gradients.
        cell: pixels per side of a cell. None: the paper's 8, or the largest divisor of the unit's sides below it.
    Raises:
        ValueError: if a unit is not made of whole cells, or there are no bins.
    """

    has_noise_floor = False  # gradients at the border of a hidden unit are in part those of pixels that are seen

    def __init__(self, stride: tuple[int, int], *, channels: int, bins: int = 9, cell: int | None = None) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"a histogram has one bin or more; got {bins}")
        both = math.gcd(*stride)
        cell = cell or next(side for side in range(min(8, both), 0, -1) if both % side == 0)
        if both % cell:
            raise ValueError(f"units of {stride[0]}x{stride[1]} pixels are not made of whole cells of {cell} pixels")
        self.cells = (stride[0] // cell, stride[1] // cell)
        self.bins, self.cell, self.channels = bins, cell, channels
        self.outputs = channels * bins * self.cells[0] * self.cells[1]

    def forward(self, images: ImageBatch) -> Float[Tensor, "B N T"]:
        pixels = pixels_of(images).float()
        down, right = torch.zeros_like(pixels), torch.zeros_like(pixels)
        down[:, :, 1:-1] = pixels[:, :, 2:] - pixels[:, :, :-2]
        right[..., 1:-1] = pixels[..., 2:] - pixels[..., :-2]
        turn = torch.atan2(down, right) / math.pi % 1
        place = (turn * self.bins).long().clamp(max=self.bins - 1)  # `%` may round up to 1
        lengths = pixels.new_zeros(*pixels.shape[:2], self.bins, *pixels.shape[2:])
        lengths.scatter_(2, place[:, :, None], torch.hypot(down, right)[:, :, None])
        histograms = F.avg_pool2d(lengths.flatten(1, 2), self.cell).unflatten(1, (-1, self.bins))
        histograms = histograms / (histograms.square().sum(dim=2, keepdim=True) + 1e-10).sqrt()
        return patchify(histograms.flatten(1, 2), self.cells)


class Codes(Target):
    """The code of each unit in a tokenizer's vocabulary, predicted by one logit per code (BEiT, ImageGPT).

    The tokenizer is frozen, always in eval mode, and saved with the pretrainer if it is a module.

    >>> from patchcast.tokenizers.patches import PatchCodebook
    >>> target = Codes(PatchCodebook(torch.tensor([[0.0], [1.0]]), stride=(1, 1), normalize=False))
    >>> target(torch.tensor([[[[0.2, 0.9]]]])).tolist()
    [[[0], [1]]]

    Args:
        tokenizer: anything with `vocabulary` and `encode`; see `patchcast.tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer, self.outputs = tokenizer, tokenizer.vocabulary
        self.is_drawn = isinstance(tokenizer, DrawingTokenizer)
        self.from_image = tokenizer.from_image if isinstance(tokenizer, DrawingTokenizer) else ""
        if isinstance(tokenizer, nn.Module):
            tokenizer.requires_grad_(False).eval()

    @property
    def values(self) -> int:
        return 1

    def train(self, mode: bool = True) -> Codes:
        super().train(mode)
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.eval()
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> Int[Tensor, "B N 1"]:
        return self.tokenizer.encode(pixels_of(images))[..., None]

    def to_pixels(
        self, predictions: Float[Tensor, "B N K"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """The most likely codes, drawn.

        Raises:
            ValueError: if the tokenizer cannot draw codes.
        """
        if not isinstance(self.tokenizer, DrawingTokenizer):
            raise ValueError(
                f"codes of {type(self.tokenizer).__name__} cannot be drawn: it has no `draw` (see DrawingTokenizer)"
            )
        return self.tokenizer.draw(predictions.argmax(dim=-1), images)

    def blind(self, targets: Int[Tensor, "B G P 1"]) -> Float[Tensor, "B G P K"]:
        """The log frequency of each code in these targets."""
        counts = F.one_hot(targets.flatten(), self.outputs).sum(0)
        return (counts / counts.sum()).log().clamp(min=-100).expand(*targets.shape[:3], -1)


class EMAFeatures(Target):
    """Layer-normalized features of a teacher: an exponential moving average of the backbone (Assran et al. 2023).

    The teacher sees the whole image, in eval mode. Its momentum rises linearly to 1 during training. Teacher and step
    are in the state dict, so that training resumes exactly.

    >>> from patchcast.backbones import wrap
    >>> backbone = wrap("test_vit", img_size=32)
    >>> target = EMAFeatures(backbone, momentum=0.9, steps=2)
    >>> target.update(backbone); target.momentum
    0.95

    Args:
        backbone: the student. It is copied, and the copy gets no gradients.
        layers: average the last `layers` blocks, each output layer-normed (Baevski et al. 2022, section 3.3), and
            layer-norm the mean; None: use the backbone's own features, after its final norm.
        local: leave only what is special to a unit of an image. The features of a gray image are taken away, with all
            that follows from the position; then, instead of layer norms, the mean over the units of the image, and
            each channel is divided by its deviation over them. At first these two are nearly all of a feature, so that
            predicting it teaches little (`benchmarks/NOTES.md`).
        momentum: at the first step.
        steps: optimizer steps until the momentum is 1; None: constant momentum. May be set later, when the number of
            steps is known.
    Raises:
        CannotError: if fewer blocks have outputs of the backbone's width and grid; see `even_blocks`. In use, if the
            target is local and the images are not one tensor.
    """

    step: Tensor

    has_noise_floor = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        momentum: float = 0.996,
        steps: int | None = None,
        layers: int | None = None,
        local: bool = False,
    ) -> None:
        super().__init__()
        blocks = 0 if layers is None else even_blocks(backbone)
        if layers is not None and not 1 <= layers <= blocks:
            raise CannotError(
                f"layers={layers}, but {backbone.name} ends in {blocks} blocks of one width and grid; "
                "give 1 to that many, or layers=None for its final features"
            )
        self.layers, self.local = layers, local
        self.teacher = copy.deepcopy(backbone).requires_grad_(False).eval()
        # Some of timm's attention caches what it makes of its weights in eval mode, and drops that in train mode.
        self._caching = [module for module in self.teacher.modules() if type(module).train is not nn.Module.train]
        self.start, self.steps, self.outputs = momentum, steps, backbone.width
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._done = 0  # the same, where reading it makes no GPU wait
        self.register_load_state_dict_post_hook(_count_again)

    @property
    def momentum(self) -> float:
        """The weight of the teacher in its next value."""
        if self.steps is None:
            return self.start
        return self.start + (1 - self.start) * min(1.0, self._done / self.steps)

    def train(self, mode: bool = True) -> EMAFeatures:
        super().train(mode)
        self.teacher.eval()
        return self

    def block_modules(self) -> list[nn.Module]:
        return self.teacher.block_modules()

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> Float[Tensor, "B N D"]:
        features = self._features(images)
        if self.local:
            if not isinstance(images, Tensor):
                raise CannotError("a local target needs images of one size, as one tensor")
            gray = self._features(images.new_zeros(1, *images.shape[1:]))  # normalized: the mean color
            own = [(x - y).transpose(1, 2) for x, y in zip(features, gray, strict=True)]
            return torch.stack([F.instance_norm(x) for x in own]).mean(dim=0).transpose(1, 2)
        if self.layers is not None:
            features = [F.layer_norm(x, x.shape[-1:]) for x in features]
        mean = torch.stack(features).mean(dim=0)
        return F.layer_norm(mean, mean.shape[-1:])

    def _features(self, images: ImageBatch) -> list[Float[Tensor, "_ N D"]]:
        """The teacher's features of every unit: its own, or those of the last blocks."""
        if self.layers is None:
            return [self.teacher.units(images).float()]
        maps = self.teacher.block_outputs(images, self.layers)
        return [map_.float().flatten(2).transpose(1, 2) for map_ in maps]

    @torch.no_grad()
    def update(self, backbone: Backbone) -> None:
        average = get_ema_multi_avg_fn(self.momentum)
        average(list(self.teacher.parameters()), [parameter.detach() for parameter in backbone.parameters()], self.step)
        for mine, theirs in zip(self.teacher.buffers(), backbone.buffers(), strict=True):
            mine.copy_(theirs)
        for module in self._caching:
            module.train()
            module.eval()
        self.step += 1
        self._done += 1


@torch.no_grad()
def even_blocks(backbone: Backbone) -> int:
    """Count the last blocks whose outputs have the backbone's width and grid; see `Backbone.block_outputs`.

    All blocks of a plain ViT, usually 1 of a model in stages (the last stage), and 0 if timm does not return the
    outputs of blocks.

    >>> from patchcast.backbones import wrap
    >>> even_blocks(wrap("test_vit"))
    6
    """
    weight = next(backbone.parameters())
    images = torch.zeros(1, backbone.channels, *backbone.image_size, dtype=weight.dtype, device=weight.device)
    with evaluating(backbone):
        try:
            maps = backbone.block_outputs(images)
        except CannotError:
            return 0
    wanted = (backbone.width, *backbone.grid(backbone.image_size))
    uneven = (place for place, map_ in enumerate(reversed(maps)) if tuple(map_.shape[1:]) != wanted)
    return next(uneven, len(maps))


def _count_again(target: EMAFeatures, _: object) -> None:
    target._done = int(target.step)


class Embeddings(Target):
    """The backbone's own embedding of each unit: its patch, before positions are added, without gradients (NEPA).

    The embedding of a unit of several patches, which a network merges at its end, is their mean.

    >>> from patchcast.backbones import wrap
    >>> Embeddings(wrap("test_vit", img_size=32))(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 4, 64])

    Args:
        backbone: the network in training. It is no part of the target, whose state stays empty.
    """

    has_noise_floor = False  # embeddings can become the same for all patches

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = (backbone,)  # in a tuple, or its weights would be the target's as well
        self.outputs = backbone.embed_width

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> Float[Tensor, "B N E"]:
        backbone = self._backbone[0]
        patches, units = backbone.to_patches(images), backbone.grid(images)
        x = to_rows(patches.x, patches.layout).float()
        if patches.grid != units:
            down, right = patches.grid.rows // units.rows, patches.grid.cols // units.cols
            x = x.unflatten(1, (units.rows, down, units.cols, right)).mean(dim=(2, 4)).flatten(1, 2)
        return x


class FrozenFeatures(Target):
    """Features of a teacher that stays as it is, for every unit: those of some blocks, resampled to the grid of units.

    Weights that know something make a better target than pixels where images or seconds are few (Wei et al. 2022,
    section 3.2; Mendieta et al. 2023), and those in the middle of a network often a better one than its last. The
    teacher sees the whole image, in eval mode, and may see it larger than the student does.

    >>> from patchcast.backbones import wrap
    >>> teacher = wrap("test_resnet", img_size=64)
    >>> target = FrozenFeatures(teacher, (8, 8), blocks=(2,), size=(64, 64)).fit(torch.randn(4, 3, 32, 32))
    >>> target(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 16, 48])

    Args:
        teacher: a backbone; it is not copied, and its weights are part of the state.
        stride: pixels per side of a unit of the student's images, (rows, cols).
        blocks: whose outputs are joined, by index, as `Backbone.block_outputs` counts them: stages, for a convolutional
            network. None: the teacher's own features.
        size: (height, width) at which the teacher sees the images; None: as they are.
        statistics: (mean, deviation) of each channel by which the images were standardized, and those by which the
            teacher wants them; None: it takes them as they come.
        saved: whether the state has the teacher's weights. If not, whoever builds the target again has to find them.
    Raises:
        ValueError: if the statistics are not of as many channels as the teacher takes.
    """

    mean: Tensor
    scale: Tensor
    contrast: Tensor
    offset: Tensor

    has_noise_floor = False  # the features of neighbors that are seen overlap with those of hidden units

    def __init__(
        self,
        teacher: Backbone,
        stride: tuple[int, int],
        *,
        blocks: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        statistics: tuple[Statistics, Statistics] | None = None,
        saved: bool = True,
    ) -> None:
        super().__init__()
        if not saved:
            self.register_state_dict_post_hook(_without_teacher)
            self.register_load_state_dict_pre_hook(_with_own_teacher)
        self.teacher = teacher.requires_grad_(False).eval()
        self.stride, self.size, self.blocks = stride, size, None if blocks is None else list(blocks)
        flat = ([0.0] * teacher.channels, [1.0] * teacher.channels)
        theirs, wanted = (torch.tensor(values) for values in (statistics or (flat, flat)))
        if theirs.shape != (2, teacher.channels) or wanted.shape != (2, teacher.channels):
            raise ValueError(
                f"the teacher takes {teacher.channels} channels; got statistics of {theirs.shape[1]} and "
                f"{wanted.shape[1]}"
            )
        self.register_buffer("contrast", (theirs[1] / wanted[1])[:, None, None])
        self.register_buffer("offset", ((theirs[0] - wanted[0]) / wanted[1])[:, None, None])
        height, width = size or teacher.image_size
        self.outputs = self._features(torch.zeros(1, teacher.channels, height, width), Grid(1, 1)).shape[-1]
        self.register_buffer("mean", torch.zeros(self.outputs))
        self.register_buffer("scale", torch.ones(self.outputs))

    def train(self, mode: bool = True) -> FrozenFeatures:
        super().train(mode)
        self.teacher.eval()
        return self

    def block_modules(self) -> list[nn.Module]:
        return self.teacher.block_modules()

    @torch.no_grad()
    def fit(self, images: ImageBatch) -> FrozenFeatures:
        """Standardize every value by the mean and deviation that it has over these images; channels of a frozen
        network differ in size by orders of magnitude."""
        values = self._of_units(images).flatten(0, 1)
        self.mean.copy_(values.mean(dim=0))
        spread = values.std(dim=0)
        self.scale.copy_(spread.clamp(min=1e-3 * float(spread.mean()) + 1e-12))  # a channel that is constant stays so
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> Float[Tensor, "B N T"]:
        return (self._of_units(images) - self.mean) / self.scale

    def _of_units(self, images: ImageBatch) -> Float[Tensor, "B N T"]:
        pixels = pixels_of(images)
        grid = Grid(pixels.shape[-2] // self.stride[0], pixels.shape[-1] // self.stride[1])
        pixels = pixels * self.contrast + self.offset
        if self.size is not None and tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, size=self.size, mode="bicubic", antialias=True)
        return self._features(pixels, grid)

    def _features(self, pixels: Float[Tensor, "B C H W"], grid: Grid) -> Float[Tensor, "B N T"]:
        if self.blocks is None:
            units, own = self.teacher.units(pixels), self.teacher.grid(pixels)
            maps = [units.transpose(1, 2).unflatten(2, own)]
        else:
            maps = self.teacher.block_outputs(pixels, self.blocks)
        return torch.cat([_resample(map_.float(), grid) for map_ in maps], dim=1).flatten(2).transpose(1, 2)


def _without_teacher(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]


def _with_own_teacher(target: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.update(target.get_submodule("teacher").state_dict(prefix=f"{prefix}teacher."))


def _resample(maps: Float[Tensor, "B D h w"], grid: Grid) -> Float[Tensor, "B D rows cols"]:
    """Averaged where the grid is coarser, linear in between where it is finer."""
    return F.interpolate(maps, size=tuple(grid), mode="bilinear", antialias=True, align_corners=False)


def _spread(units: Float[Tensor, "B N T"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    return units.var(dim=-1, keepdim=True), units.mean(dim=-1, keepdim=True)


def patchify(images: Float[Tensor, "B C H W"], stride: tuple[int, int]) -> Float[Tensor, "B N T"]:
    """Images to units, row by row; the values of a unit in the order row, column, channel."""
    batch, channels, height, width = images.shape
    (down, right) = stride
    x = images.reshape(batch, channels, height // down, down, width // right, right)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, down * right * channels)


def unpatchify(units: Float[Tensor, "B N T"], grid: Grid, stride: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify`.

    >>> import torch
    >>> images = torch.rand(2, 3, 4, 6)
    >>> torch.equal(unpatchify(patchify(images, (2, 2)), Grid(2, 3), (2, 2)), images)
    True
    """
    (down, right) = stride
    x = units.reshape(len(units), grid.rows, grid.cols, down, right, -1).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(len(units), -1, grid.rows * down, grid.cols * right)
