"""Incremental forward passes of timm's plain transformer blocks, with cached keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.key_values import KeyValues
from patchcast.backbones.sequence import ViT


def can_cache(backbone: Backbone) -> bool:
    """Whether every block is timm's plain block with plain attention: ViT, DeiT, CLIP, SigLIP, DINOv2, AIM.

    >>> from patchcast.backbones import wrap
    >>> can_cache(wrap("test_vit")), can_cache(wrap("vit_tiny_patch16_dinov3_qkvb", depth=1))
    (True, False)
    """
    return type(backbone) is ViT and all(
        type(block) is Block and _is_plain(block.attn) for block in backbone.model.blocks
    )


def _is_plain(attn: nn.Module) -> bool:
    # Gates and output norms came with later versions of timm; none of its models of this class has them.
    beside = [getattr(attn, "gate", None), getattr(attn, "norm", None)]
    return type(attn) is Attention and all(part is None or isinstance(part, nn.Identity) for part in beside)


class CachedBlocks:
    """The blocks and the final norm of a backbone, in eval mode, for tokens that arrive in several pieces.

    >>> from patchcast.backbones import wrap
    >>> backbone = wrap("test_vit", img_size=32).eval()
    >>> x, blocks = torch.randn(1, 5, 64), CachedBlocks(backbone, batch=1, places=5)
    >>> with torch.no_grad():
    ...     pieces = torch.cat([blocks.extend(x[:, :3]), blocks.extend(x[:, 3:4]), blocks.extend(x[:, 4:])], dim=1)
    >>> pieces.shape
    torch.Size([1, 5, 64])

    Args:
        backbone: one that `can_cache`.
        places: maximum number of tokens in total, prefix tokens included.
    """

    def __init__(self, backbone: Backbone, *, batch: int, places: int) -> None:
        self.model = backbone.model
        first = self.model.blocks[0].attn
        self.cache = KeyValues(
            depth=len(self.model.blocks), heads=first.num_heads, channels=first.head_dim, batch=batch, places=places,
            like=first.qkv.weight,
        )  # fmt: skip

    def extend(self, x: Float[Tensor, "B P D"], *, is_causal: bool = False) -> Float[Tensor, "B P D"]:
        """Features of the next tokens, which attend to all earlier ones.

        Args:
            is_causal: within this piece, tokens attend to earlier tokens only (for the first piece). Otherwise they
                all attend to one another.
        """
        at, end = self.cache.length, self.cache.length + x.shape[1]
        for layer, block in enumerate(self.model.blocks):
            memory = self.cache.memory[layer]
            x = x + block.ls1(_attend(block.attn, block.norm1(x), memory, at, is_causal))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        self.cache.length = end
        return self.model.norm(x)


def _attend(
    attn: Any, x: Float[Tensor, "B P D"], memory: Float[Tensor, "2 B heads places d"], at: int, is_causal: bool
) -> Float[Tensor, "B P D"]:
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    memory.narrow(3, at, x.shape[1]).copy_(torch.stack([attn.k_norm(k), v]))
    keys, values = memory.narrow(3, 0, at + x.shape[1])
    x = F.scaled_dot_product_attention(attn.q_norm(q), keys, values, is_causal=is_causal, scale=attn.scale)
    return attn.proj(x.transpose(1, 2).flatten(2))
