"""A codebook of patches, fitted by k-means on the user's own images; and pixel tokenizers applied to whole units."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from patchcast.files import read_weights, write_weights
from patchcast.geometry import Grid
from patchcast.targets import Pixels, unpatchify
from patchcast.tokenizers.base import DrawingTokenizer, Tokenizer
from patchcast.tokenizers.palette import to_levels


class PatchCodebook(nn.Module):
    """A tokenizer whose code of a unit is the nearest center to its pixels, normalized as for `Pixels` or raw.

    >>> images = torch.rand(8, 3, 32, 32)
    >>> tokenizer = PatchCodebook.fit([images], stride=(8, 8), vocabulary=16)
    >>> tokenizer.encode(images).shape
    torch.Size([8, 16])

    Args:
        centres: the cluster centers, one row per code, with values in the order of `Pixels`.
        stride: pixels per side of a unit, (rows, cols): the backbone's.
        normalize: compare units normalized by their mean and standard deviation: texture rather than color.
    Raises:
        ValueError: if the rows are not units of this stride.
    """

    centres: Tensor

    def __init__(self, centres: Float[Tensor, "V T"], stride: tuple[int, int], *, normalize: bool = True) -> None:
        super().__init__()
        channels, rest = divmod(centres.shape[1], stride[0] * stride[1])
        if rest or not channels:
            raise ValueError(f"a center of {centres.shape[1]} values is not a unit of {stride[0]}x{stride[1]} pixels")
        self.pixels = Pixels(stride, channels=channels, normalize=normalize)
        self.from_image = self.pixels.from_image
        self.register_buffer("centres", centres)

    @property
    def vocabulary(self) -> int:
        return len(self.centres)

    @classmethod
    def fit(
        cls,
        batches: Iterable[Float[Tensor, "B C H W"]],
        *,
        stride: tuple[int, int],
        vocabulary: int = 512,
        normalize: bool = True,
        units: int = 100_000,
        seed: int = 0,
    ) -> PatchCodebook:
        """Fit the centers to the first `units` units of the given batches of images.

        Raises:
            ValueError: if there are fewer units than codes.
        """
        found: list[Tensor] = []
        for images in batches:
            pixels = Pixels(stride, channels=images.shape[1], normalize=normalize)
            found.append(pixels(images.float().cpu()).flatten(0, 1))
            if sum(map(len, found)) >= units:
                break
        sample = torch.cat(found)[:units] if found else torch.empty(0, 1)
        if len(sample) < vocabulary:
            raise ValueError(f"{len(sample)} units are too few for {vocabulary} codes; give more images")
        kmeans = MiniBatchKMeans(vocabulary, batch_size=4096, n_init=1, random_state=seed).fit(sample.numpy())
        return cls(torch.from_numpy(kmeans.cluster_centers_).float(), stride, normalize=normalize)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        units = self.pixels(images.float())
        # |u - c|² without the term that is the same for every center; in pieces, to limit memory.
        offset = self.centres.square().sum(dim=1)
        nearest = [(offset - 2 * part @ self.centres.T).argmin(dim=1) for part in units.flatten(0, 1).split(8192)]
        return torch.cat(nearest).view(units.shape[:2])

    def draw(self, ids: Int[Tensor, "B N"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The centers of codes as pixels; normalized ones with the mean and contrast of each unit in `images`."""
        return self.pixels.to_pixels(self.centres[ids], images)

    def decode(self, ids: Int[Tensor, "B N"], grid: Grid) -> UInt8[Tensor, "B C H W"]:
        """Codes as 8-bit images, for a codebook of raw units of images with black -1 and white 1.

        Raises:
            ValueError: if the units were normalized: their codes have no mean and contrast.
        """
        if self.pixels.normalize:
            raise ValueError("codes of normalized units have no mean and contrast; fit with normalize=False")
        return to_levels(unpatchify(self.centres[ids], grid, self.pixels.stride))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        stride = torch.tensor(self.pixels.stride)
        normalize = torch.tensor(self.pixels.normalize)
        write_weights({"centres": self.centres.contiguous(), "stride": stride, "normalize": normalize}, path)

    @classmethod
    def load(cls, path: str | Path) -> PatchCodebook:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is broken, or holds no codebook.
        """
        state = read_weights(path)
        try:
            centres, (rows, cols) = state["centres"].float(), map(int, state["stride"].tolist())
            if centres.ndim != 2 or min(rows, cols) < 1 or centres.shape[1] % (rows * cols):
                raise ValueError(f"{tuple(centres.shape)} values for units of {rows}x{cols} pixels")
            return cls(centres, (rows, cols), normalize=bool(state["normalize"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as problem:
            raise ValueError(f"{path} holds no codebook: {problem}") from problem


class PerUnit(nn.Module):
    """A tokenizer of pixels (a palette) applied to units: the code of each unit's mean color.

    >>> grays = PatchCodebook(torch.tensor([[0.0], [1.0]]), stride=(1, 1), normalize=False)
    >>> PerUnit(grays, (1, 2)).encode(torch.tensor([[[[0.1, 0.3, 0.2, 0.9]]]])).tolist()
    [[0, 1]]

    Args:
        pixels: a tokenizer that gives each pixel a code.
        stride: pixels per side of a unit, (rows, cols): the backbone's.
    """

    from_image = ""

    def __init__(self, pixels: Tokenizer, stride: tuple[int, int]) -> None:
        super().__init__()
        self.pixels, self.stride, self.vocabulary = pixels, stride, pixels.vocabulary

    def encode(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        return self.pixels.encode(F.avg_pool2d(images, self.stride))

    def draw(self, ids: Int[Tensor, "B N"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Units filled with the color of their code.

        Raises:
            ValueError: if the tokenizer of pixels cannot draw codes.
        """
        if not isinstance(self.pixels, DrawingTokenizer):
            raise ValueError(f"codes of {type(self.pixels).__name__} cannot be drawn: it has no `draw`")
        drawn = self.pixels.draw(ids, F.avg_pool2d(images, self.stride))
        return F.interpolate(drawn, size=images.shape[-2:], mode="nearest")
