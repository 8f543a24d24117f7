"""The peers' losses, each as its package's own example or class computes it, on an encoder of timm that is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecoderSize:
    width: int
    depth: int
    heads: int


def lightly_mae(encoder: Any, patch: int, decoder: DecoderSize) -> tuple[nn.Module, Loss]:
    """lightly's MAE as in its example `mae.py`: the same modules, its own helpers."""
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    backbone = MaskedVisionTransformerTIMM(vit=encoder)
    head = MAEDecoderTIMM(
        num_patches=encoder.patch_embed.num_patches,
        patch_size=patch,
        embed_dim=encoder.embed_dim,
        decoder_embed_dim=decoder.width,
        decoder_depth=decoder.depth,
        decoder_num_heads=decoder.heads,
    )

    def loss(images: Tensor) -> Tensor:
        length = backbone.sequence_length
        keep, mask = utils.random_token_mask(size=(len(images), length), mask_ratio=0.75, device=images.device)
        encoded = backbone.encode(images=images, idx_keep=keep)
        embedded = head.embed(encoded)
        whole = utils.repeat_token(head.mask_token, (len(images), length))
        whole = utils.set_at_index(whole, keep, embedded.type_as(whole))
        predicted = head.predict(utils.get_at_index(head.decode(whole), mask))
        target = utils.get_at_index(utils.patchify(images, patch), mask - 1)
        return F.mse_loss(predicted, utils.normalize_mean_var(target, dim=-1))

    return nn.ModuleList([backbone, head]), loss


def stable_mae(encoder: Any, patch: int, decoder: DecoderSize) -> tuple[nn.Module, Loss]:
    from stable_pretraining.methods import MAE

    model = MAE(encoder, decoder.width, decoder.depth, decoder.heads).train()
    return model, lambda images: model(images).loss


def birder_mae(encoder: Any, patch: int, decoder: DecoderSize) -> tuple[nn.Module, Loss]:
    """birder's MAE: its masks, decoder and loss, on timm's encoder instead of its own."""
    from birder.net.base import MaskedTokenOmissionMixin
    from birder.net.mim.mae_vit import MAE_ViT
    from birder.net.vit import EncoderBlock

    class Encoder(nn.Module, MaskedTokenOmissionMixin):
        num_special_tokens, input_channels = encoder.num_prefix_tokens, 3
        stem_stride = max_stride = patch
        feature_dim = encoder.embed_dim

        def __init__(self) -> None:
            super().__init__()
            self.timm = encoder

        def decoder_block(self, width: int) -> nn.Module:
            return EncoderBlock(
                decoder.heads, width, mlp_dim=None, dropout=0.0, attention_dropout=0.0, projection_dropout=0.0,
                drop_path=0.0, activation_layer=nn.GELU,
            )  # fmt: skip

        def masked_encoding_omission(self, images: Tensor, keep: Tensor) -> dict[str, Tensor]:
            tokens = self.timm._pos_embed(self.timm.patch_embed(images))
            prefix, units = tokens[:, : self.num_special_tokens], tokens[:, self.num_special_tokens :]
            units = units.gather(1, keep[..., None].expand(-1, -1, units.shape[2]))
            return {"tokens": self.timm.norm(self.timm.blocks(torch.cat([prefix, units], dim=1)))}

    config = {"decoder_depth": decoder.depth, "decoder_embed_dim": decoder.width, "norm_pix_loss": True}
    model = MAE_ViT(Encoder(), config=config, size=encoder.patch_embed.img_size)
    return model, lambda images: model(images)["loss"]


def transformers_mae(encoder: Any, patch: int, decoder: DecoderSize) -> tuple[nn.Module, Loss]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=encoder.embed_dim,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.num_heads,
        intermediate_size=4 * encoder.embed_dim,
        image_size=encoder.patch_embed.img_size[0],
        patch_size=patch,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=4 * decoder.width,
        norm_pix_loss=True,
    )
    model = ViTMAEForPreTraining(config).train()
    return model, lambda images: model(images).loss


def stable_simmim(encoder: Any, patch: int) -> tuple[nn.Module, Loss]:
    from stable_pretraining.methods import SimMIM

    encoder.reset_classifier(0)
    model = SimMIM(encoder, patch_size=patch, image_size=encoder.patch_embed.img_size[0]).train()
    return model, lambda images: model(images).loss


def transformers_swin(size: int, swin: Any, unit: int) -> tuple[nn.Module, Loss]:
    """transformers' masked image modelling on Swin, of the same sizes as this one of timm; 60 % of units hidden."""
    from transformers import SwinConfig, SwinForMaskedImageModeling

    config = SwinConfig(
        image_size=size,
        embed_dim=swin.embed_dim,
        depths=[len(layer.blocks) for layer in swin.layers],
        num_heads=[layer.blocks[0].attn.num_heads for layer in swin.layers],
        window_size=swin.layers[0].blocks[0].window_size[0],
        encoder_stride=unit,
        drop_path_rate=0.0,
    )
    model = SwinForMaskedImageModeling(config).train()
    side, patches = size // unit, unit // config.patch_size

    def loss(images: Tensor) -> Tensor:
        order = torch.rand(len(images), side * side, device=images.device).argsort(dim=1)
        hidden = (order < round(0.6 * side * side)).view(-1, side, 1, side, 1)
        mask = hidden.expand(-1, -1, patches, -1, patches).reshape(len(images), -1)
        return model(images, bool_masked_pos=mask).loss

    return model, loss


def lightly_ijepa(encoder: Any, plan: Callable[[int], Any], predictor: DecoderSize) -> tuple[nn.Module, Loss]:
    """lightly's I-JEPA modules, on blocks that we draw: its own collator cuts every image's to the smallest."""
    from lightly.models import utils
    from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM

    backbone = MaskedVisionTransformerTIMM(vit=encoder)
    teacher = copy.deepcopy(backbone).requires_grad_(False).eval()
    head = IJEPAPredictorTIMM(
        num_patches=encoder.patch_embed.num_patches,
        depth=predictor.depth,
        mlp_dim=encoder.embed_dim,
        predictor_embed_dim=predictor.width,
        num_heads=predictor.heads,
    )

    def loss(images: Tensor) -> Tensor:
        drawn = plan(len(images)).to(images.device)
        seen, asked = drawn.visible, list(drawn.predict.unbind(1))
        with torch.no_grad():
            target = F.layer_norm(teacher.encode(images)[:, 1:], (encoder.embed_dim,))
            target = utils.apply_masks(target, asked)
        context = backbone.encode(images, idx_keep=_with_class(seen))[:, 1:]
        predicted = head(context, [seen], asked)
        return F.smooth_l1_loss(predicted, target)

    return nn.ModuleList([backbone, head]), loss


def stable_ijepa(encoder: Any, predictor: DecoderSize) -> tuple[nn.Module, Loss]:
    from stable_pretraining.methods import IJEPA

    model = IJEPA(encoder, predictor.width, predictor.depth).train()
    return model, lambda images: model(images).loss


def stable_igpt(encoder: Any, patch: int) -> tuple[nn.Module, Loss]:
    """Its iGPT as shipped: next-patch regression. Its mask is upside down (`peers_honesty.py`), its cost is not."""
    from stable_pretraining.methods.igpt import iGPT

    model = iGPT(encoder, patch_size=patch, image_size=encoder.patch_embed.img_size[0]).train()
    return model, lambda images: model(images).loss


def bare(encoder: Any) -> tuple[nn.Module, Loss]:
    """timm's forward and backward and nothing besides: the floor of every method that sees all units."""
    return encoder.train(), lambda images: encoder.forward_features(images).square().mean()


def _with_class(units: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(units[:, :1]), units + 1], dim=1)
