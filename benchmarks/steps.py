"""A training step of each method beside the peers': forward, backward and fused AdamW, the same sizes, by turns.

    python benchmarks/steps.py --cases mae-tiny-32 ijepa --turns 15 --out steps.json

On a CPU one thread, eager, float32 unless `--bf16`. Needs the peers extra, and for its rows the bench extra. Each has
the encoder of one timm model; transformers its own of the same sizes. What is measured: `side_by_side.Measured`.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from side_by_side import Measured, Step, machine, side_by_side, table, training_step, write
from torch import Tensor, nn

import peers
from patchcast.backbones import wrap
from patchcast.geometry import Grid
from patchcast.methods import aim, ijepa, mae, simmim
from patchcast.plans import MaskPlan, MultiBlock
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import AttentionKernel
from patchcast.runs.speed import use_attention
from peers import DecoderSize, Loss

Contenders = Mapping[str, Callable[[], tuple[nn.Module, Loss]]]
HAS_STABLE = importlib.util.find_spec("stable_pretraining") is not None
PAPERS_DECODER = DecoderSize(512, 8, 16)


def ours(pretrainer: Pretrainer) -> tuple[nn.Module, Loss]:
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    pretrainer.train()

    def loss(images: Tensor) -> Tensor:
        pretrainer.after_step()  # after a step or before one: it costs the same
        return pretrainer(images, pretrainer.draw(images)).loss  # drawn outside of what is compiled, as in training

    return pretrainer, loss


def only_stable(contenders: Contenders) -> Contenders:
    """stable-pretraining is in an extra of its own."""
    return contenders if HAS_STABLE else {}


def mae_case(size: int, decoder: DecoderSize, name: str, patch: int) -> Contenders:
    encoder = timm.create_model(name, img_size=size, patch_size=patch)
    settings = {"decoder_width": decoder.width, "decoder_depth": decoder.depth, "decoder_heads": decoder.heads}
    return {
        "ours": lambda: ours(mae(wrap(copy.deepcopy(encoder)), **settings)),
        "lightly": lambda: peers.lightly_mae(copy.deepcopy(encoder), patch, decoder),
        "transformers": lambda: peers.transformers_mae(encoder, patch, decoder),
        **only_stable({"stable-pretraining": lambda: peers.stable_mae(copy.deepcopy(encoder), patch, decoder)}),
    }


def all_blocks_at_once(grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
    """What stable-pretraining's predictor is asked: all blocks in one sequence, where they see one another."""
    plan = MultiBlock()(grid, batch, generator)
    return replace(plan, hidden=plan.hidden.flatten(1)[:, None])


def ijepa_case(name: str) -> Contenders:
    encoder, predictor = timm.create_model(name), DecoderSize(192, 6, 3)
    settings = {"predictor_width": 192, "predictor_depth": 6, "predictor_heads": 3}
    plan = partial(MultiBlock(), Grid(14, 14))

    def at_once() -> tuple[nn.Module, Loss]:
        pretrainer = ijepa(wrap(copy.deepcopy(encoder)), **settings)
        pretrainer.plan = all_blocks_at_once
        return ours(pretrainer)

    return {
        "ours": lambda: ours(ijepa(wrap(copy.deepcopy(encoder)), **settings)),
        "ours, all blocks at once": at_once,
        "lightly": lambda: peers.lightly_ijepa(copy.deepcopy(encoder), plan, predictor),
        **only_stable({"stable-pretraining": lambda: peers.stable_ijepa(copy.deepcopy(encoder), predictor)}),
    }


def simmim_case(name: str) -> Contenders:
    swin = timm.create_model(name, drop_path_rate=0.0)
    return {
        "ours": lambda: ours(simmim(wrap(copy.deepcopy(swin)))),
        "transformers": lambda: peers.transformers_swin(224, swin, 32),
    }


def aim_case(name: str) -> Contenders:
    encoder = timm.create_model(name, num_classes=0)
    return {
        "ours": lambda: ours(aim(wrap(copy.deepcopy(encoder)), head_depth=0)),
        "timm, no method": lambda: peers.bare(copy.deepcopy(encoder)),
        **only_stable({"stable-pretraining": lambda: peers.stable_igpt(copy.deepcopy(encoder), 16)}),
    }


# Each with the images of a batch and the pixels of a side.
CASES: dict[str, tuple[Callable[[], Contenders], int, int]] = {
    "mae-tiny-32": (lambda: mae_case(32, DecoderSize(192, 4, 3), "vit_tiny_patch16_224", 4), 64, 32),
    "mae-tiny-224": (lambda: mae_case(224, PAPERS_DECODER, "vit_tiny_patch16_224", 16), 8, 224),
    "mae-small-224": (lambda: mae_case(224, PAPERS_DECODER, "vit_small_patch16_224", 16), 8, 224),
    "mae-base-224": (lambda: mae_case(224, PAPERS_DECODER, "vit_base_patch16_224", 16), 8, 224),
    "ijepa": (lambda: ijepa_case("vit_tiny_patch16_224"), 8, 224),
    "simmim-swin": (lambda: simmim_case("swin_tiny_patch4_window7_224"), 4, 224),
    "aim": (lambda: aim_case("vit_tiny_patch16_224"), 8, 224),
}
SHORT = ("mae-tiny-32", "ijepa", "aim")


def measure(name: str, args: argparse.Namespace) -> tuple[list[Measured], int]:
    torch.manual_seed(0)
    make, batch, size = CASES[name]
    batch = args.batch or batch
    images = torch.randn(batch, 3, size, size, device=args.device)
    steps: dict[str, Step] = {}
    for told, contender in make().items():
        model, loss = contender()
        steps[told] = step_of(model, loss, images, args)
    if args.ours_bf16:
        for attention in args.attention:
            model, loss = make()["ours"]()
            if not use_attention(model, attention):
                raise SystemExit(f"{name}: no layer has a choice of attention; leave out --attention")
            steps[f"ours, bf16, {attention}"] = step_of(model, loss, images, args, bf16=True)
    if args.compile:
        model, loss = make()["ours"]()
        model.compile()
        steps["ours, compiled"] = step_of(model, loss, images, args)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    return side_by_side(steps, turns=args.turns, device=args.device, dtype=dtype), batch


def step_of(model: nn.Module, loss: Loss, images: Tensor, args: argparse.Namespace, *, bf16: bool = False) -> Step:
    return training_step(model.to(args.device), partial(loss, images), bf16=bf16 or args.bf16, device=args.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=SHORT, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch", type=int, help="default: by case")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast for everybody")
    parser.add_argument("--ours_bf16", action="store_true", help="one more row: ours in bf16, everybody in fp32")
    parser.add_argument(
        "--attention", nargs="+", choices=get_args(AttentionKernel), default=["fused"], metavar="KERNEL",
        help="of the rows of --ours_bf16, one for each: fused, explicit; --precision auto takes the faster one",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="one more row: ours under torch.compile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    told: dict[str, Any] = machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in told.items()), "bf16 autocast" if args.bf16 else "fp32")
    found: dict[str, list[Measured]] = {}
    for name in args.cases:
        found[name], batch = measure(name, args)
        print(table(f"{name}, batch {batch}", found[name], batch), flush=True)
        if args.out:
            write(args.out, found, args.device)


if __name__ == "__main__":
    main()
