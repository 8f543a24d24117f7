"""Draw images code by code, or complete them from their first codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Int64, Real
from rich.progress import Progress
from torch import Tensor, nn

from patchcast.backbones.backbone import CannotError
from patchcast.backbones.imagegpt_network import Cache, ImageGPT, ImageGPTBackbone
from patchcast.backbones.imagegpt_stepwise import Stepwise
from patchcast.modes import evaluating
from patchcast.pretrainer import Pretrainer


def sample(
    pretrainer: Pretrainer,
    count: int,
    *,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Int64[Tensor, "count N"]:
    """Draw codes of new images; a palette's `decode` turns them into pictures.

    >>> from patchcast.geometry import Grid
    >>> from patchcast.methods.imagegpt import imagegpt
    >>> from patchcast.tokenizers.palette import Palette
    >>> palette = Palette(torch.linspace(-1, 1, 16)[:, None])
    >>> network = ImageGPT(Grid(4, 4), 16, depth=1, width=16, heads=2)
    >>> ids = sample(imagegpt(ImageGPTBackbone(network, palette, channels=1)), 3)
    >>> palette.decode(ids, network.grid).shape
    torch.Size([3, 1, 4, 4])

    Image i does not depend on the batch size (except for rounding): all random numbers are drawn at the start, N for
    each image.

    Args:
        count: images.
        generator: on the CPU; None for torch's default.
        temperature: divides the logits; 1 as in the paper. 0 takes the most likely code each time.
        top_k: sample from the k most likely codes.
        top_p: sample from the smallest set of codes with at least this total probability.
        batch_size: images drawn at once.
        progress: show a progress bar.
    Raises:
        CannotError: if the pretrainer's backbone is not a causal ImageGPT.
        ValueError: if temperature, top_k or top_p is out of range.
    """
    network = parts(pretrainer)[0]
    nothing = torch.empty(count, 0, dtype=torch.long, device=network.positions.device)
    return _draw(pretrainer, nothing, generator, temperature, top_k, top_p, batch_size, progress)


def complete(
    pretrainer: Pretrainer,
    images: Real[Tensor, "B C H W"],
    prefix: int,
    *,
    copies: int = 1,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Int64[Tensor, "B copies N"]:
    """Complete images from their first `prefix` codes (half of them in the paper's figures); returns codes.

    Args:
        images: as the tokenizer takes them.
        prefix: number of given codes, row by row, 0 to N; `grid.units // 2` is the upper half.
        copies: completions of each image.
        others: as in `sample`.
    Raises:
        ValueError: as in `sample`, or if the prefix is longer than an image.
    """
    network = parts(pretrainer)[0]
    units = network.grid.units
    if not 0 <= prefix <= units:
        raise ValueError(f"an image has {units} codes; got a prefix of {prefix}")
    pretrainer.backbone.grid(images)
    ids = pretrainer.target(images.to(network.positions.device))[..., 0]
    given = ids[:, :prefix].repeat_interleave(copies, dim=0)
    drawn = _draw(pretrainer, given, generator, temperature, top_k, top_p, batch_size, progress)
    return drawn.unflatten(0, (-1, copies))


def _draw(
    pretrainer: Pretrainer,
    given: Int[Tensor, "B P"],
    generator: torch.Generator | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    batch_size: int,
    progress: bool,
) -> Int64[Tensor, "B N"]:
    network, head = parts(pretrainer)
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"needs temperature >= 0, top_k >= 1 and 0 < top_p <= 1; got {temperature}, {top_k} and {top_p}"
        )
    left = network.grid.units - given.shape[1]
    chance = torch.rand(len(given), left, generator=generator).to(given.device)
    batches = list(zip(given.split(batch_size), chance.split(batch_size), strict=True))
    drawn: list[Tensor] = []
    with Progress(disable=not progress) as bar, evaluating(pretrainer):
        stepwise = Stepwise(network, head)
        task = bar.add_task("drawing", total=left * len(batches))
        for prefix, numbers in batches:
            codes = [prefix]
            for code in _codes(network, head, stepwise, prefix, numbers, temperature, top_k, top_p):
                codes.append(code)
                bar.advance(task)
            drawn.append(torch.cat(codes, dim=1))
    return torch.cat(drawn).clone() if drawn else given  # cloned outside inference mode, for use in training


def _codes(
    network: ImageGPT,
    head: nn.Linear,
    stepwise: Stepwise,
    given: Int[Tensor, "B P"],
    chance: Float[Tensor, "B left"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Iterator[Int64[Tensor, "B 1"]]:
    cache = Cache(network, len(given))
    latest = given
    for number in chance.unbind(dim=1):
        logits = stepwise(latest, cache) if cache.length else head(network.extend(latest, cache)[:, -1])
        latest = choose(logits.float(), number, temperature, top_k, top_p)[:, None]
        yield latest


def choose(
    logits: Float[Tensor, "B K"],
    chance: Float[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int64[Tensor, " B"]:
    """Sample a code for each row, from a number in [0, 1) and the cumulative probabilities.

    >>> logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    >>> [choose(logits, torch.tensor([u])).item() for u in (0.0, 0.09, 0.11, 0.29, 0.31, 0.99)]
    [0, 0, 1, 1, 2, 2]
    >>> [choose(logits, torch.tensor([u]), top_k=2).item() for u in (0.0, 0.2, 0.3)]
    [1, 1, 2]
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, where = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        is_enough = ordered.cumsum(dim=-1) - ordered >= top_p  # the more likely codes have that probability already
        logits = logits.masked_fill(is_enough.scatter(1, where, is_enough), -torch.inf)
    total = logits.softmax(dim=-1).cumsum(dim=-1)
    # An excluded code adds nothing to the sum, so that no draw selects it, not even a draw of 0.
    return (total <= chance[:, None] * total[:, -1:]).sum(dim=-1)


def parts(pretrainer: Pretrainer) -> tuple[ImageGPT, nn.Linear]:
    """The network and the head for generation.

    Raises:
        CannotError: if the pretrainer's backbone is not a causal ImageGPT.
    """
    backbone, predictor = pretrainer.backbone, pretrainer.predictor
    if not isinstance(backbone, ImageGPTBackbone) or not backbone.model.causal:
        raise CannotError(f"{backbone.name} cannot draw images code by code; a causal ImageGPT can")
    head: Any = predictor
    return backbone.model, head.project
