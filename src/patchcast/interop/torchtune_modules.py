"""torchtune's `VisionTransformer` with any layer, positions and projection, without torchtune."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from timm.layers import LayerNormFp32
from torch import Tensor, nn


class TorchtuneVisionTransformer(nn.Module):
    """torchtune's `VisionTransformer(...)`, with the same arguments and parameter names.

    Its parts may be torchtune's or your own: a `layer` takes (B, L, D), positions take (B, T, L, D) and the aspect
    ratios (B, 2). For models of `clip_vision_encoder`, `TorchtuneViT` can also be pretrained. Two things differ: a tile
    size that patches do not divide is an error (torchtune drops the remainder), and so are indices of hidden states
    that do not exist.

    >>> class Same(nn.Module):
    ...     def forward(self, x, *_):
    ...         return x
    >>> layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
    >>> model = TorchtuneVisionTransformer(16, 32, 2, 32, layer, Same(), out_indices=[0])
    >>> x, hidden = model(torch.zeros(2, 1, 1, 3, 32, 32))
    >>> x.shape, len(hidden)
    (torch.Size([2, 1, 1, 5, 32]), 1)

    Args:
        layer: copied `num_layers` times.
        token_pos_embedding: adds positions to the tokens of each tile, class token included.
        pre_tile_pos_embed: adds positions of tiles to patches, before the class token is added.
        post_tile_pos_embed: adds positions of tiles after the last norm.
        cls_projection: takes (B, N, T, L, D); if given, its result is the output.
        out_indices: layers before which hidden states are taken, in the order of the layers; `num_layers` for what
            the last one returns.
        append_cls_token: the class token is the last token of each tile, not the first.
    Raises:
        ValueError: if sizes are not positive or do not divide one another, there are more `out_indices` than layers, or
            there is no such hidden state.
    """

    def __init__(
        self,
        patch_size: int,
        tile_size: int,
        num_layers: int,
        embed_dim: int,
        layer: nn.Module,
        token_pos_embedding: nn.Module,
        pre_tile_pos_embed: nn.Module | None = None,
        post_tile_pos_embed: nn.Module | None = None,
        cls_projection: nn.Module | None = None,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        append_cls_token: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"tile_size": tile_size, "patch_size": patch_size}.items():
            if value <= 0:
                raise ValueError(f"{name} must be > 0; got {value}")
        if tile_size % patch_size:
            raise ValueError(f"tile_size must be divisible by patch_size; got {tile_size} and {patch_size}")
        self.out_indices = check_out_indices(out_indices, num_layers)
        self.patches_per_tile = (tile_size // patch_size) ** 2
        self.conv = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size, bias=False)
        self.cls_token_embedding = ClassToken(embed_dim, last=append_cls_token)
        self.pre_tile_pos_embed, self.post_tile_pos_embed = pre_tile_pos_embed, post_tile_pos_embed
        self.token_pos_embedding, self.cls_projection = token_pos_embedding, cls_projection
        self.ln_pre, self.ln_post = LayerNormFp32(embed_dim, eps=1e-5), LayerNormFp32(embed_dim, eps=1e-5)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))

    def forward(
        self, images: Float[Tensor, "B N T C t t"], aspect_ratio: Int[Tensor, "B N 2"] | None = None
    ) -> tuple[Tensor, list[Float[Tensor, "B N T L D"]]]:
        """Features (or the output of `cls_projection`) and hidden states.

        Args:
            aspect_ratio: rows and columns of tiles of each image; optional if images have one tile.
        Raises:
            ValueError: if it is missing and images have several tiles.
        """
        batch, tiles = images.shape[:2], images.shape[2]
        if aspect_ratio is None:
            if tiles > 1:
                raise ValueError(f"aspect_ratio is needed for images of several tiles; got {tuple(images.shape)}")
            aspect_ratio = torch.ones(*batch, 2, dtype=torch.int, device=images.device)
        ratios = aspect_ratio.flatten(0, 1)
        x = self.conv(images.flatten(0, 2)).flatten(2).transpose(1, 2).unflatten(0, (-1, tiles))
        if self.pre_tile_pos_embed is not None:
            x = self.pre_tile_pos_embed(x, ratios)
        x = self.ln_pre(self.token_pos_embedding(self.cls_token_embedding(x), ratios))
        by_tile = (tiles, x.shape[2])
        x, hidden = x.flatten(1, 2), []
        for index, layer in enumerate([*self.layers, None]):
            if index in self.out_indices:
                hidden.append(x.unflatten(1, by_tile).unflatten(0, batch))
            x = x if layer is None else layer(x)
        x = self.ln_post(x).unflatten(1, by_tile)
        if self.post_tile_pos_embed is not None:
            x = self.post_tile_pos_embed(x, ratios)
        x = x.unflatten(0, batch)
        return x if self.cls_projection is None else self.cls_projection(x), hidden


class ClassToken(nn.Module):
    """One learnable token in front of those of every tile, or after them."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(width) * width**-0.5), last

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T L D"]:
        token = self.weight.expand(*x.shape[:2], 1, -1)
        return torch.cat([x, token] if self.last else [token, x], dim=2)


def check_out_indices(out_indices: Sequence[int] | None, num_layers: int) -> list[int]:
    """The layers before which hidden states are returned.

    >>> check_out_indices([0, 2], 2)
    [0, 2]
    """
    indices = list(out_indices or ())
    if len(indices) > num_layers:
        raise ValueError(f"len(out_indices) must be <= num_layers; got {indices} and {num_layers}")
    if any(not 0 <= index <= num_layers for index in indices):
        raise ValueError(f"out_indices must be in 0..{num_layers}; got {indices}")
    return indices
