"""Palettes: each pixel becomes the index of the nearest of K colors, and back (ImageGPT's tokens)."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int16, Int64, Real, UInt8
from torch import Tensor, nn

from patchcast.data.seals import matches_seal, seal
from patchcast.files import cache_folder, read_weights, write_cache, write_weights, write_whole
from patchcast.geometry import Grid

MAX_COLORS = 4096
CELL = 16
"""Edge of the cubes of colors that share candidates. The table of OpenAI's 512 colors took 6 seconds on one core with
16, and 13 and 25 seconds with 8 and 32."""


@runtime_checkable
class ImageSource(Protocol):
    """Any sequence of (uint8 image, label): from `patchcast.data.open_images`, a list, your own dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class Palette(nn.Module):
    """K colors: a tokenizer whose code of a pixel is its nearest color (Chen et al. 2020, section 3.2).

    >>> palette = Palette(torch.tensor([[-1.0], [0.0], [1.0]]))
    >>> ids = palette.encode(torch.tensor([[[[0, 120], [140, 250]]]], dtype=torch.uint8))
    >>> ids.tolist(), palette.decode(ids, Grid(2, 2)).tolist()
    ([[0, 1, 1, 2]], [[[[0, 128], [128, 255]]]])

    The colors are not part of the `state_dict`, because a network's weights do not depend on them. Use `save`.

    Args:
        colors: K colors from -1 (black) to 1 (white), with one channel (gray) or three.
    Raises:
        ValueError: if there are more than 4,096, or some are not in [-1, 1].

    Attributes:
        vocabulary: K.
        channels: 1 or 3.
    """

    colors: Tensor
    _table: Tensor | None
    from_image = ""

    def __init__(self, colors: Float[Tensor, "K C"]) -> None:
        super().__init__()
        if len(colors) > MAX_COLORS or colors.shape[1] not in (1, 3):
            raise ValueError(f"a palette has up to {MAX_COLORS} colors of 1 or 3 channels; got {tuple(colors.shape)}")
        if not len(colors) or not bool((colors.abs() <= 1).all()):
            raise ValueError(
                "a palette's colors lie between -1 (black) and 1 (white); scale 8-bit ones by x / 127.5 - 1"
            )
        self.vocabulary, self.channels = colors.shape
        self.register_buffer("colors", colors.float(), persistent=False)
        self.register_buffer("_table", None, persistent=False)

    def encode(self, images: Real[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        """The index of the nearest color of every pixel, row by row.

        The codes are those of transformers' `ImageGPTImageProcessor`, including the rounding of its float32 distances
        (which decides a few near-ties). They are looked up in a table of all 2^24 colors, which is built on first use
        and cached in the user's cache folder.

        Args:
            images: uint8; or floating point with black -1 and white 1 (mean and standard deviation 0.5), which is
                rounded to the nearest 8-bit level first.
        Raises:
            ValueError: if the images have other channels than the palette.
        """
        if images.shape[1] != self.channels:
            raise ValueError(f"the palette has colors of {self.channels} channels; the images have {images.shape[1]}")
        levels = to_levels(images).to(torch.int32)
        index = levels[:, 0]
        if self.channels == 3:
            index = (index << 16) | (levels[:, 1] << 8) | levels[:, 2]
        return self.table.index_select(0, index.flatten()).to(torch.int64).view(images.shape[0], -1)

    def decode(self, ids: Int[Tensor, "B N"], grid: Grid) -> UInt8[Tensor, "B C H W"]:
        """The pictures of some codes, rounded to 8 bits."""
        levels = ((self.colors + 1) * 127.5).round().to(torch.uint8)
        return levels[ids].unflatten(1, grid).permute(0, 3, 1, 2).contiguous()

    def draw(self, ids: Int[Tensor, "B N"], images: Real[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The colors of codes as floating-point images, black -1 and white 1, in the size of `images`."""
        return self.colors[ids].unflatten(1, images.shape[-2:]).permute(0, 3, 1, 2)

    def psnr(self, images: UInt8[Tensor, "B C H W"]) -> float:
        """Peak signal-to-noise ratio of the quantized images in dB, over all pixels; infinite if they are unchanged.

        >>> Palette(torch.tensor([[-1.0], [1.0]])).psnr(torch.full((1, 1, 2, 2), 10, dtype=torch.uint8))
        28.1...
        """
        back = self.decode(self.encode(images), Grid(images.shape[2], images.shape[3]))
        error = (back.double() - images.double()).square().mean()
        return float(20 * torch.log10(255 / error.sqrt()))

    @property
    def colours(self) -> Float[Tensor, "K C"]:
        """The earlier name of `colors`."""
        return self.colors

    @property
    def table(self) -> Int16[Tensor, " all"]:
        """The code of every 8-bit color, indexed by 65536 red + 256 green + blue (or by the gray level)."""
        if self._table is None:
            self._table = _cached_table(self.colors.cpu()).to(self.colors.device)
        return self._table

    def save(self, path: str | Path) -> None:
        """Write the colors as `.npy`, like OpenAI's clusters, or as `.safetensors`; `load` reads both."""
        if _is_numpy(path):
            write_whole(path, lambda unfinished: np.save(unfinished, self.colors.cpu().numpy()))
        else:
            write_weights({"colours": self.colors.cpu()}, path)  # the spelling of files that are saved already

    @classmethod
    def load(cls, path: str | Path) -> Palette:
        """Read the colors of a `.npy` or `.safetensors` file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file has another suffix, or holds no colors.
        """
        colors = _read_array(path) if _is_numpy(path) else read_weights(path).get("colours")
        if colors is None or colors.ndim != 2 or not colors.is_floating_point():
            raise ValueError(f"{path} holds no palette, which is an array of floating-point colors, one per row")
        return cls(colors)

    def extra_repr(self) -> str:
        return f"{self.vocabulary} colors, {self.channels} channels"


def fit_palette(images: ImageSource, k: int, *, seed: int = 0, pixels: int = 1_000_000) -> Palette:
    """Fit the k colors of a palette by k-means on a sample of a source's pixels; darkest first.

    >>> shades = torch.tensor([0, 1, 128, 129, 255], dtype=torch.uint8).view(1, 1, 5)
    >>> (fit_palette([(shades, 0)] * 3, k=3).colors[:, 0] * 127.5 + 127.5).int().tolist()
    [0, 128, 255]

    Args:
        images: a source, such as from `patchcast.data.open_images`.
        k: number of colors, up to 4,096. If the sample has at most k colors, they are used exactly.
        seed: of the sample and of k-means.
        pixels: maximum number of pixels in the sample, spread evenly over the images.
    Raises:
        ValueError: if k is out of range, or the images are neither gray nor RGB.
    """
    if not 1 <= k <= MAX_COLORS:
        raise ValueError(f"a palette has 1 to {MAX_COLORS} colors; asked for {k}")
    sample = _sample_pixels(images, pixels, seed)
    distinct = np.unique(sample, axis=0)
    if len(distinct) <= k:
        centers = distinct / 127.5 - 1
    else:
        from sklearn.cluster import MiniBatchKMeans

        # On CIFAR-10 with k = 512 this gave palettes of 34.19 and 34.20 dB; OpenAI's has 34.34, the default batch of
        # 1024 34.04 and 33.97, and reassigning rare colors (the default) 34.14 and 34.17.
        kmeans = MiniBatchKMeans(
            k, batch_size=16384, n_init=1, max_no_improvement=30, reassignment_ratio=0.0, random_state=seed
        )
        centers = np.clip(kmeans.fit(sample / 127.5 - 1).cluster_centers_, -1, 1)
    brightness = centers @ np.array([0.299, 0.587, 0.114] if centers.shape[1] == 3 else [1.0])
    return Palette(torch.from_numpy(centers[np.argsort(brightness, kind="stable")]).float())


def to_levels(images: Real[Tensor, "*B H W"]) -> UInt8[Tensor, "*B H W"]:
    """8-bit images: unchanged if they are 8-bit already, else rounded from black -1 and white 1.

    >>> to_levels(torch.tensor([[-1.0, 0.25, 3.0]])).tolist()
    [[0, 159, 255]]
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are uint8, or floating point with black -1 and white 1; got {images.dtype}")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def nearest(pixels: Float32[Tensor, "M C"], colors: Float32[Tensor, "K C"]) -> Int64[Tensor, " M"]:
    """The nearest color of each pixel; of equal distances, the first.

    Distances are a^2 - 2ab + b^2, rounded to float32 at each step, with ab as a chain of fused multiply-adds, as x86
    and CUDA libraries compute matrix products of three terms. The chain is computed in double precision, so that codes
    are the same on every machine.
    """
    product = pixels[:, None, 0] * colors[None, :, 0]
    for a, b in zip(pixels.T[1:].double(), colors.T[1:].double(), strict=True):
        product = torch.addcmul(product.double(), a[:, None], b[None]).float()
    distance = _squares(pixels)[:, None] - 2 * product + _squares(colors)[None]
    return distance.argmin(dim=1)


def _squares(x: Float32[Tensor, "M C"]) -> Float32[Tensor, " M"]:
    total = x[:, 0].square()
    for channel in x.T[1:]:
        total = total + channel.square()
    return total


def build_table(colors: Float32[Tensor, "K C"]) -> Int16[Tensor, " all"]:
    """The nearest color of every 8-bit color: 2^8 grays or 2^24 colors, in the order of their bytes."""
    levels = (torch.arange(256, dtype=torch.float32) - 127.5) / 127.5
    if colors.shape[1] == 1:
        return nearest(levels[:, None], colors).to(torch.int16)
    table = torch.empty(256, 256, 256, dtype=torch.int16)
    edges = levels.split(CELL)
    centers = torch.stack([edge.mean() for edge in edges])
    # A color farther from a cell's center than the nearest one by more than the cell's diagonal is nearest to no point
    # of the cell. Rounding moves a squared distance by less than 2e-6, and so a distance by less than 2e-3.
    reach = (edges[0][-1] - edges[0][0]) * 3**0.5 + 2e-3
    for r, reds in enumerate(edges):
        middle = torch.cartesian_prod(centers[r : r + 1], centers, centers)
        away = torch.cdist(middle, colors, compute_mode="donot_use_mm_for_euclid_dist")
        is_candidate = away <= away.min(dim=1, keepdim=True).values + reach
        for cell, candidates in enumerate(is_candidate):
            g, b = divmod(cell, len(edges))
            few = candidates.nonzero()[:, 0]
            codes = few[nearest(torch.cartesian_prod(reds, edges[g], edges[b]), colors[few])]
            box = tuple(slice(i * CELL, (i + 1) * CELL) for i in (r, g, b))
            table[box] = codes.view(CELL, CELL, CELL).to(torch.int16)
    return table.flatten()


def _cached_table(colors: Float32[Tensor, "K C"]) -> Int16[Tensor, " all"]:
    if colors.shape[1] == 1:
        return build_table(colors)
    name = hashlib.blake2b(colors.numpy().tobytes(), digest_size=16).hexdigest()
    file = cache_folder() / f"palette-{name}.npy"
    if matches_seal(file):
        return torch.from_numpy(np.load(file, allow_pickle=False))
    table = build_table(colors)
    with suppress(OSError):  # so that a damaged file is not sealed where the disk is full
        file.unlink(missing_ok=True)
    write_cache(file, lambda unfinished: np.save(unfinished, table.numpy()))
    if file.is_file():
        with suppress(OSError):
            seal(file)
    return table


def _sample_pixels(images: ImageSource, pixels: int, seed: int) -> UInt8[np.ndarray, "M C"]:
    """Up to `pixels` pixels: all of them, or the same number of random ones from each of at most 10,000 images."""
    random = np.random.default_rng(seed)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(10_000, len(images))).astype(int))
    rows = []
    for index in chosen.tolist():
        image, _ = images[index]
        if image.dtype != torch.uint8 or image.shape[0] not in (1, 3):
            raise ValueError(
                f"a palette is fitted to uint8 images of 1 or 3 channels; image {index} is {image.dtype} with "
                f"{image.shape[0]} channels"
            )
        each = image.flatten(1).T.numpy()
        share = max(1, pixels // len(chosen))
        rows.append(each if len(each) <= share else each[random.choice(len(each), share, replace=False)])
    return np.concatenate(rows)


def _read_array(path: str | Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))  # a pickle could run code
    except FileNotFoundError:
        raise
    except Exception as problem:  # a broken file can raise nearly anything
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise ValueError(f"{path} cannot be read as a palette: {reason}") from problem


def _is_numpy(path: str | Path) -> bool:
    suffix = Path(path).suffix
    if suffix not in (".npy", ".safetensors"):
        raise ValueError(f"a palette is saved as .npy or .safetensors; got {path}")
    return suffix == ".npy"
