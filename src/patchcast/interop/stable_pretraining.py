"""stable-pretraining's `iGPT`, which is AIM with a linear head: same arguments; the differences are listed."""

from __future__ import annotations

from typing import Any

from torch import nn

from patchcast.backbones.adapters import wrap
from patchcast.methods.aim import aim
from patchcast.plans import RasterOrder
from patchcast.pretrainer import Pretrainer


def iGPT(  # the name that users of stable-pretraining know
    encoder_name_or_module: str | nn.Module = "vit_small_patch16_224",
    patch_size: int = 16,
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    pretrained: bool = False,
) -> Pretrainer:
    """Predict the next patch's normalized pixels from those before it, with a linear head.

    The same as `aim(backbone, plan=RasterOrder(random_prefix=False), head_depth=0)`. It differs from
    stable-pretraining 0.1.8 as follows:

    - there, the mask is inverted: True means "blocked", but "may be seen" for timm, so that each patch attends to those
      after it, including its target. With the mask inverted, the loss is the same as here.
    - a named encoder gets `in_channels`, `patch_size` and `image_size`; there they only shape the head.
    - images need not be square, and encoders may be any whose attention takes masks (DINOv3, BEiT, SigLIP, ...); there
      `forward` reimplements a plain ViT with learned positions.
    - in eval mode the loss is computed (there it is 0), and `output.embedding` is `backbone.pool` of the whole image
      in both modes (there the class token, or the mean under the mask).
    - `output.predictions` is (B, 1, N - 1, T), with the pixels of a patch in the order row, column, channel.

    >>> import torch
    >>> pretrainer = iGPT("vit_tiny_patch16_224", patch_size=8, image_size=(16, 32), in_channels=5)
    >>> output = pretrainer(torch.randn(2, 5, 16, 32))
    >>> output.predictions.shape, output.embedding.shape
    (torch.Size([2, 1, 7, 320]), torch.Size([2, 384]))

    Args:
        encoder_name_or_module: a timm name, or a model that was built for the other arguments.
        patch_size, image_size, in_channels: of a named encoder; what a built one must have.
        pretrained: start a named encoder from timm's weights.
    Raises:
        CannotError: if the encoder's attention takes no mask, or its stem reaches over the border of patches.
        ValueError: if a built encoder has another patch size, or does not take such images.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(encoder_name_or_module, str):
        built: dict[str, Any] = {"img_size": size, "patch_size": patch_size, "in_chans": in_channels}
        backbone = wrap(encoder_name_or_module, pretrained=pretrained, num_classes=0, **built)
    else:
        backbone = wrap(encoder_name_or_module)
    if backbone.stride != (patch_size, patch_size) or backbone.channels != in_channels:
        raise ValueError(
            f"this {backbone.name} has patches of {backbone.stride[0]}x{backbone.stride[1]} pixels and "
            f"{backbone.channels} channels; asked for {patch_size}x{patch_size} and {in_channels}"
        )
    backbone.grid(size)
    return aim(backbone, plan=RasterOrder(random_prefix=False), head_depth=0)
