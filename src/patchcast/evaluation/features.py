"""Extract frozen features: one pass over the images, in eval mode, cached by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone, ImageBatch
from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.files import write_cache
from patchcast.modes import evaluating

Loader = Iterable[Sequence[Tensor]]


@dataclass(frozen=True)
class Features:
    """One vector per image, with its label. Probes run on the device of the features: `features.to("cuda")` moves them.

    >>> features = Features(torch.eye(3), torch.tensor([0, 1, 1]))
    >>> len(features), features.take(torch.tensor([2])).labels.tolist()
    (3, [1])

    Attributes:
        labels: class indices; -1 without a label.
    """

    x: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Int[Tensor, " M"]) -> Features:
        """The features of some images, in the given order."""
        index = index.to(self.labels.device)
        return Features(self.x[index], self.labels[index])

    def to(self, device: torch.device | str) -> Features:
        return Features(self.x.to(device), self.labels.to(device))


@dataclass(frozen=True)
class TokenFeatures:
    """One vector per unit of each image, for probes that pool by themselves. N * L * D * 4 bytes of memory.

    >>> len(TokenFeatures(torch.zeros(3, 16, 8), torch.tensor([0, 1, 1])))
    3
    """

    x: Float[Tensor, "N L D"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Int[Tensor, " M"]) -> TokenFeatures:
        """The features of some images, in the given order."""
        index = index.to(self.labels.device)
        return TokenFeatures(self.x[index], self.labels[index])

    def to(self, device: torch.device | str) -> TokenFeatures:
        return TokenFeatures(self.x.to(device), self.labels.to(device))


AnyFeatures = TypeVar("AnyFeatures", Features, TokenFeatures)


def check_probe(train: AnyFeatures, test: AnyFeatures) -> None:
    """Check that features can be probed.

    >>> check_probe(Features(torch.eye(2), torch.tensor([-1, -1])), Features(torch.eye(2), torch.tensor([0, 1])))
    Traceback (most recent call last):
    ValueError: the source has no labels; a probe needs them

    Raises:
        ValueError: if labels are missing, an image set is empty, widths differ, all training labels are equal, or
            features are not finite.
    """
    for name, features in (("training", train), ("test", test)):
        if not len(features):
            raise ValueError(f"the {name} set is empty; a probe needs images to train on and images to test on")
        if bool((features.labels < 0).any()):
            raise ValueError("the source has no labels; a probe needs them")
        broken = int((~features.x.isfinite()).flatten(1).any(dim=1).sum())
        if broken:
            raise ValueError(f"the features of {broken} of {len(features)} {name} images are NaN or infinite")
    if train.x.shape[1:] != test.x.shape[1:]:
        widths = f"{tuple(train.x.shape[1:])} and {tuple(test.x.shape[1:])}"
        raise ValueError(f"training and test features differ in shape, {widths}: they are not of one backbone")
    if len(train.labels.unique()) < 2:
        raise ValueError(f"all {len(train)} training images are of class {int(train.labels[0])}; a probe needs two")


def extract(
    backbone: Backbone,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    readout: Readout = DEFAULT_READOUT,
    precision: torch.dtype | None = None,
    cache: Path | None = None,
) -> Features:
    """The embedding of every image: `backbone.pool`, in eval mode, without gradients.

    >>> from patchcast.backbones.sequence import ViT
    >>> backbone = ViT(timm.create_model("test_vit", img_size=32, patch_size=8))
    >>> extract(backbone, [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))]).x.shape
    torch.Size([2, 128])

    Args:
        loader: yields batches of (images, labels), with images as the backbone takes them. Labels are class indices, -1
            for none. It must not augment: one view of each image is cached and compared.
        device: where the backbone runs, and where it stays. Features are returned on the CPU, as float32.
        readout: how units become one feature; see `Backbone.pool`.
        precision: dtype of autocast (torch.bfloat16); None computes in the weights' own.
        cache: folder in which each batch's features are kept, under a hash of the weights and one of the images as
            transformed, so that a change of either is computed anew. The images are still read: their content is what
            the hash is of.
    Raises:
        ValueError: if the loader is empty, or an image does not fit the backbone.
    """
    what = "pool" if readout == "mean" else f"pool {readout}"  # keeps features that earlier versions cached valid
    compute = lambda images: {"x": backbone.pool(images, readout)}  # noqa: E731
    outputs, labels = run_over(backbone, loader, what, compute, device, precision, cache)
    return Features(outputs["x"], labels)


def extract_with(
    model: nn.Module, loader: Loader, *, device: torch.device | str = "cpu", cache: Path | None = None
) -> Features:
    """The outputs of any model of images, one vector per image; arguments as in `extract`.

    >>> extract_with(nn.Flatten(), [(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))]).x.shape
    torch.Size([2, 48])
    """
    outputs, labels = run_over(model, loader, "model", lambda images: {"x": model(images)}, device, None, cache)
    return Features(outputs["x"], labels)


def extract_layers(
    backbone: Backbone,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    cache: Path | None = None,
) -> dict[int, Features]:
    """The mean over units of every block's raw output (without final norm), in one pass; keys are block indices.

    >>> from patchcast.backbones.sequence import ViT
    >>> backbone = ViT(timm.create_model("test_vit", img_size=32, patch_size=8))
    >>> layers = extract_layers(backbone, [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))])
    >>> {block: tuple(features.x.shape) for block, features in layers.items()}
    {0: (2, 64), 1: (2, 64), 2: (2, 64), 3: (2, 64), 4: (2, 64), 5: (2, 64)}

    A hierarchical model has one entry per stage, with its own width. Arguments as in `extract`.

    Raises:
        ValueError: if timm gives this architecture no `forward_intermediates`.
    """

    def compute(images: ImageBatch) -> dict[str, Tensor]:
        return {str(block): x.mean(dim=(2, 3)) for block, x in enumerate(backbone.block_outputs(images))}

    outputs, labels = run_over(backbone, loader, "layers", compute, device, precision, cache)
    return {int(block): Features(x, labels) for block, x in sorted(outputs.items(), key=lambda item: int(item[0]))}


def extract_tokens(
    backbone: Backbone,
    loader: Loader,
    *,
    blocks: int | Sequence[int] = 6,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    cache: Path | None = None,
) -> TokenFeatures:
    """The features of units, averaged over the raw outputs of some blocks: input of the attentive probe (AIM, sec. 5).

    >>> from patchcast.backbones.sequence import ViT
    >>> backbone = ViT(timm.create_model("test_vit", img_size=32, patch_size=8))
    >>> extract_tokens(backbone, [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))], blocks=(4, 5)).x.shape
    torch.Size([2, 16, 64])

    Args:
        blocks: the number of last blocks, or their indices; AIM averages six. Others as in `extract`.
    Raises:
        ValueError: if timm gives this architecture no `forward_intermediates`, or the blocks differ in shape.
    """

    def compute(images: ImageBatch) -> dict[str, Tensor]:
        taken = backbone.block_outputs(images, blocks)
        if len({x.shape for x in taken}) > 1:
            shapes = ", ".join(f"{tuple(x.shape[1:])}" for x in taken)
            raise ValueError(
                f"{backbone.name}'s blocks {blocks} differ in shape ({shapes}); choose blocks of one stage"
            )
        return {"x": torch.stack(taken).mean(dim=0).flatten(2).transpose(1, 2)}

    outputs, labels = run_over(backbone, loader, f"tokens {blocks}", compute, device, precision, cache)
    return TokenFeatures(outputs["x"], labels)


def raw_pixels(loader: Loader, *, size: tuple[int, int] | None = None) -> Features:
    """The pixels themselves as features: the baseline for learned features.

    >>> raw_pixels([(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))], size=(8, 8)).x.shape
    torch.Size([2, 192])

    Args:
        size: (height, width) to average the images down to first; None for all pixels. The linear probe took 1 s
            for 5,000 images of 8x8x3 on one core, and 70 s for 32x32x3.
    Raises:
        ValueError: if the loader is empty.
    """

    def pixels(images: Float[Tensor, "B C H W"]) -> Tensor:
        return (images if size is None else F.interpolate(images, size=size, mode="area")).flatten(1)

    rows = [(pixels(images).float(), labels) for images, labels in loader]
    return Features(*_join(rows))


# ---- one pass over the images ---------------------------------------------------------------------------------------


def run_over(
    backbone: nn.Module,
    loader: Loader,
    what: str,
    compute: Callable[[ImageBatch], dict[str, Tensor]],
    device: torch.device | str,
    precision: torch.dtype | None,
    cache: Path | None,
) -> tuple[dict[str, Tensor], Int[Tensor, " N"]]:
    """The concatenated outputs of `compute` for every batch, and the labels; `what` names them in the cache."""
    device = torch.device(device)
    backbone.to(device)
    folder = None
    if cache is not None:
        folder = Path(cache) / _digest(_weights_content(backbone), f"{what} {precision} {device.type}".encode())
    batches: list[dict[str, Tensor]] = []
    all_labels: list[Tensor] = []
    with evaluating(backbone), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
        for images, labels in loader:
            file = None if folder is None else folder / f"{_digest(_tensor_content(images))}.safetensors"
            cached = None if file is None else _read_batch(file)
            if cached is None:
                outputs = compute(images.to(device))
                cached = {name: x.float().cpu().contiguous() for name, x in outputs.items()}
                if file is not None:
                    write_cache(file, partial(_write_batch, cached))
            batches.append(cached)
            all_labels.append(labels)
    if not batches:
        raise ValueError("the loader yields no images")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}, torch.cat(all_labels)


def _write_batch(batch: dict[str, Tensor], unfinished: Path) -> None:
    save_file(batch, unfinished, {"digest": _batch_digest(batch)})


def _read_batch(file: Path) -> dict[str, Tensor] | None:
    """Cached features; None if there are none, or they are not what was written."""
    try:
        with safe_open(file, "pt") as opened:
            digest = (opened.metadata() or {}).get("digest")
            batch = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return batch if digest == _batch_digest(batch) else None


def _batch_digest(batch: dict[str, Tensor]) -> str:
    return _digest(*(piece for name in sorted(batch) for piece in (name.encode(), _tensor_content(batch[name]))))


def _join(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if not rows:
        raise ValueError("the loader yields no images")
    xs, labels = zip(*rows, strict=True)
    return torch.cat(xs), torch.cat(labels)


def fingerprint(content: nn.Module | Sequence[str]) -> str:
    """A hash of a model's weights and settings, or of a list of names.

    >>> fingerprint(["a", "b"]) == fingerprint(["ab"])
    False
    """
    if isinstance(content, nn.Module):
        return _digest(_weights_content(content))
    return _digest("\0".join(content).encode())


def _digest(*parts: Iterable[bytes | memoryview] | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for piece in [part] if isinstance(part, bytes) else part:
            digest.update(piece)
    return digest.hexdigest()


def _tensor_content(x: Tensor) -> Iterator[bytes | memoryview]:
    yield f"{x.dtype} {tuple(x.shape)} ".encode()
    yield x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _weights_content(model: nn.Module) -> Iterator[bytes | memoryview]:
    """All that the output depends on except the image: tensors, the class and settings of every module, versions.

    Tensors are not enough: two models with different numbers of heads can have the same tensors.
    """
    yield f"torch {torch.__version__} timm {timm.__version__} ".encode()
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple)) and k[0] != "_"}
        plain.pop("training", None)
        yield f"{name} {type(module).__module__}.{type(module).__qualname__} {sorted(plain.items())} ".encode()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.rpartition(".")[2].startswith("_"):
            continue  # a palette's table, built on first use
        yield f"{name} ".encode()
        yield from _tensor_content(tensor)
