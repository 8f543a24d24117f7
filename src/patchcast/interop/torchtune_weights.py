"""torchtune's tiled vision transformer, with its arguments, outputs and parameter names, without torchtune.

torchtune is no longer maintained. A model of its `clip_vision_encoder`, such as Llama 3.2's vision encoder, becomes a
`Tiled` over timm's VisionTransformer here, and can be pretrained, probed and exported like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchcast.backbones.sequence import ViT
from patchcast.backbones.tiled import ClassProjection, Tiled
from patchcast.geometry import Grid
from patchcast.interop.torchtune_modules import check_out_indices

State = Mapping[str, Tensor]

# All names except those of positions and of the weights that torchtune splits into three.
TOP = {
    "conv.weight": "patch_embed.proj.weight",
    "ln_pre.weight": "norm_pre.weight",
    "ln_pre.bias": "norm_pre.bias",
    "ln_post.weight": "norm.weight",
    "ln_post.bias": "norm.bias",
}
LAYER = {
    "sa_norm": "norm1",
    "mlp_norm": "norm2",
    "attn.output_proj": "attn.proj",
    "mlp.w1": "mlp.fc1",
    "mlp.w2": "mlp.fc2",
}


class TorchtuneViT(nn.Module):
    """torchtune's `clip_vision_encoder(...)`, with the same arguments, on top of `Tiled`.

    Its outputs equal torchtune's to 1e-5. Four things differ: with `append_cls_token`, the class projection reads the
    class token (torchtune reads a patch, and treats one as the class token when it resizes positions); hidden states
    come in the given order, and the one after the last layer is available; a tile size that patches do not divide, or a
    depth that does not exist, is an error; there is no `use_rope`.

    >>> model = TorchtuneViT(tile_size=32, patch_size=16, embed_dim=32, num_layers=2, num_heads=2, out_indices=[0, 1])
    >>> x, hidden = model(torch.zeros(2, 1, 4, 3, 32, 32), torch.tensor([[[2, 2]], [[1, 3]]]))
    >>> x.shape, len(hidden)
    (torch.Size([2, 1, 4, 5, 32]), 2)

    Args:
        sees_padding: as in torchtune, tokens attend to padded tiles. False masks them: features are better, but not
            torchtune's. The other arguments are torchtune's.
    Raises:
        ValueError: if sizes are not positive or do not divide one another, or there is no such hidden state.
    """

    def __init__(
        self,
        tile_size: int,
        patch_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        activation: Callable[..., nn.Module] = nn.SiLU,
        cls_output_dim: int = 512,
        attn_bias: bool = True,
        out_indices: Sequence[int] | None = None,
        output_cls_projection: bool = False,
        max_num_tiles: int = 4,
        in_channels: int = 3,
        append_cls_token: bool = False,
        use_tile_pos_embed: bool = True,
        sees_padding: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {"tile_size": tile_size, "patch_size": patch_size, "max_num_tiles": max_num_tiles}.items():
            if value <= 0:
                raise ValueError(f"{name} must be > 0; got {value}")
        if tile_size % patch_size:
            raise ValueError(f"tile_size must be divisible by patch_size; got {tile_size} and {patch_size}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be divisible by num_heads; got {embed_dim} and {num_heads}")
        self.depths, self.class_last = check_out_indices(out_indices, num_layers), append_cls_token
        vit = VisionTransformer(
            img_size=tile_size,
            patch_size=patch_size,
            in_chans=in_channels,
            num_classes=0,
            embed_dim=embed_dim,
            depth=num_layers,
            num_heads=num_heads,
            qkv_bias=attn_bias,
            pre_norm=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            act_layer=activation,
        )
        if not attn_bias:
            block: Any
            for block in vit.blocks:
                block.attn.proj = nn.Linear(embed_dim, embed_dim, bias=False)
        tiled = use_tile_pos_embed and max_num_tiles > 1
        self.backbone = Tiled(
            ViT(vit),
            Grid(max_num_tiles, max_num_tiles),
            before=tiled,
            tokens=tiled,
            after=tiled,
            sees_padding=sees_padding,
        )
        self.cls_projection = ClassProjection(embed_dim, cls_output_dim) if output_cls_projection else None

    def forward(
        self, images: Float[Tensor, "B N T C t t"], aspect_ratio: Int[Tensor, "B N 2"] | None = None
    ) -> tuple[Float[Tensor, "B N T L D"], list[Float[Tensor, "B N T L D"]]]:
        """Features (or the projected class token, L = 1) and hidden states.

        Args:
            aspect_ratio: rows and columns of tiles of each image; optional if images have one tile.
        """
        output = self.backbone.forward_tiles(images, aspect_ratio, depths=self.depths)
        hidden = [layer.rows(class_last=self.class_last) for layer in output.hidden]
        if self.cls_projection is not None:
            return self.cls_projection(output)[..., None, :], hidden
        return output.rows(class_last=self.class_last), hidden


def to_torchtune(model: TorchtuneViT) -> dict[str, Tensor]:
    """The state dict of a model with torchtune's names and shapes, for its own `load_state_dict`.

    >>> model = TorchtuneViT(tile_size=32, patch_size=16, embed_dim=32, num_layers=1, num_heads=2)
    >>> state = to_torchtune(model)
    >>> state["layers.0.attn.q_proj.weight"].shape, state["pre_tile_pos_embed.embedding"].shape
    (torch.Size([32, 32]), torch.Size([4, 4, 1, 32]))
    """
    own = model.backbone.model.state_dict()
    vit = {name.removeprefix("tile.model."): value for name, value in own.items() if name.startswith("tile.model.")}
    state = {theirs: vit[ours] for theirs, ours in TOP.items()}
    state["cls_token_embedding.weight"] = vit["cls_token"].flatten()
    for name, value in vit.items():
        if not name.startswith("blocks."):
            continue
        _, layer, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        if part == "attn.qkv":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                state[f"layers.{layer}.attn.{letter}_proj.{kind}"] = third
        else:
            theirs = next(theirs for theirs, ours in LAYER.items() if ours == part)
            state[f"layers.{layer}.{theirs}.{kind}"] = value
    local = class_to(vit["pos_embed"][0], last=model.class_last)
    if model.backbone.model.tokens is None:
        state["token_pos_embedding.positional_embedding"] = local
    else:
        state["token_pos_embedding.local_token_positional_embedding"] = local
        state["token_pos_embedding.global_token_positional_embedding"] = class_to(
            own["tokens.positions"], last=model.class_last
        )
        state["token_pos_embedding.gate"] = own["tokens.gate"]
        for theirs, ours in (("pre_tile_pos_embed", "before"), ("post_tile_pos_embed", "after")):
            state[f"{theirs}.embedding"] = own[f"{ours}.positions"][:, :, None]
            state[f"{theirs}.gate"] = own[f"{ours}.gate"]
    if model.cls_projection is not None:
        state["cls_projection.weight"] = model.cls_projection.project.weight.T
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def load_torchtune(model: TorchtuneViT, state: State) -> None:
    """Load a state dict with torchtune's names. Positions of other grids of tiles or patches are resampled.

    Resampling is torchtune's: bilinear with aligned corners, class tokens separate from patches.

    Raises:
        ValueError: if names are missing or unexpected, or a shape differs that cannot be resampled.
    """
    wanted = to_torchtune(model)
    missing, left = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    if missing or left:
        raise ValueError(
            f"the state is of another model: it lacks {', '.join(sorted(missing)[:3]) or 'nothing'}, "
            f"and has {', '.join(sorted(left)[:3]) or 'nothing'} in addition"
        )
    fitted = {name: _fit(name, state[name], wanted[name].shape, model.class_last) for name in wanted}
    own = model.backbone.model.state_dict()
    with torch.no_grad():
        for name, tensor in _from_torchtune(fitted, model.class_last).items():
            own[name].copy_(tensor)
        if model.cls_projection is not None:
            model.cls_projection.project.weight.copy_(fitted["cls_projection.weight"].T)


def _from_torchtune(state: State, class_last: bool) -> dict[str, Tensor]:
    """Convert to the names and shapes of `TiledModel`."""
    own = {f"tile.model.{ours}": state[theirs] for theirs, ours in TOP.items()}
    own["tile.model.cls_token"] = state["cls_token_embedding.weight"].view(1, 1, -1)
    thirds = [name for name in state if ".attn.q_proj." in name]
    for name in thirds:
        block = name.replace("layers.", "tile.model.blocks.").replace("q_proj", "qkv")
        own[block] = torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
    for name, value in state.items():
        for theirs, ours in LAYER.items():
            if name.startswith("layers.") and f".{theirs}." in name:
                own[name.replace("layers.", "tile.model.blocks.").replace(f".{theirs}.", f".{ours}.")] = value
    token = "token_pos_embedding."
    if f"{token}gate" in state:
        local = state[f"{token}local_token_positional_embedding"]
        own["tokens.positions"] = class_from(state[f"{token}global_token_positional_embedding"], last=class_last)
        own["tokens.gate"] = state[f"{token}gate"]
        for theirs, ours in (("pre_tile_pos_embed", "before"), ("post_tile_pos_embed", "after")):
            own[f"{ours}.positions"] = state[f"{theirs}.embedding"][:, :, 0]
            own[f"{ours}.gate"] = state[f"{theirs}.gate"]
    else:
        local = state[f"{token}positional_embedding"]
    own["tile.model.pos_embed"] = class_from(local, last=class_last)[None]
    return own


def class_to(positions: Float[Tensor, "*T L D"], *, last: bool) -> Float[Tensor, "*T L D"]:
    """Move the class token, which is first here, to the end if `last`."""
    return positions.roll(-1, dims=-2) if last else positions


def class_from(positions: Float[Tensor, "*T L D"], *, last: bool) -> Float[Tensor, "*T L D"]:
    """The inverse of `class_to`."""
    return positions.roll(1, dims=-2) if last else positions


def _fit(name: str, tensor: Tensor, shape: torch.Size, class_last: bool) -> Tensor:
    """Check the shape of a tensor, and resample it if it holds positions."""
    if tensor.shape == shape:
        return tensor
    if tensor.ndim != len(shape) or tensor.shape[-1] != shape[-1]:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and the model {tuple(shape)}")
    if name.endswith("tile_pos_embed.embedding"):
        return resample(tensor[:, :, 0], (shape[0], shape[1]))[:, :, None]
    if "token_pos" not in name or tensor.ndim not in (2, 4):
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and the model {tuple(shape)}")
    side, wanted = isqrt(tensor.shape[-2] - 1), isqrt(shape[-2] - 1)
    if side * side != tensor.shape[-2] - 1:
        raise ValueError(f"{name} cannot be resampled: its {tensor.shape[-2] - 1} patches per tile are not a square")
    table = class_from(tensor, last=class_last)
    table = table.view(*(1,) * (4 - table.ndim), *table.shape)
    rows, cols = (shape[0], shape[1]) if len(shape) == 4 else (1, 1)
    classes = resample(table[:, :, 0], (rows, cols))[:, :, None]
    patches = table[:, :, 1:].unflatten(2, (side, side)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    patches = resample(patches, (rows * wanted, cols * wanted))
    patches = patches.unflatten(1, (cols, wanted)).unflatten(0, (rows, wanted)).transpose(1, 2).flatten(2, 3)
    return class_to(torch.cat([classes, patches], dim=2), last=class_last).reshape(shape)


def resample(table: Float[Tensor, "rows cols D"], size: tuple[int, int]) -> Float[Tensor, "h w D"]:
    """A table of positions at another resolution.

    >>> resample(torch.tensor([[[0.0], [2.0]]]), (1, 3))[0, :, 0].tolist()
    [0.0, 1.0, 2.0]
    """
    resized = F.interpolate(table.permute(2, 0, 1)[None].float(), size=size, mode="bilinear", align_corners=True)
    return resized[0].permute(1, 2, 0).to(table.dtype)
