"""A training step of ImageGPT: ours against transformers' class, the same weights and codes, in turns in one run.

    python benchmarks/imagegpt_training.py --depth 6 --width 128 --heads 4 --side 16 --batch 16

Forward, backward and the optimizer (torch's fused AdamW for both), in float32 or under bfloat16 autocast, without
dropout, as in the paper. Both score all n targets of n codes: theirs has no argument for that, so its logits of the
start token and all codes but the last are scored. The losses are compared before. What is measured:
`side_by_side.Measured`.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
import transformers
from side_by_side import machine, side_by_side, table, training_step
from torch import Tensor, nn

from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.geometry import Grid
from patchcast.interop.imagegpt_weights import Weights, to_transformers
from patchcast.methods.imagegpt import imagegpt
from patchcast.tokenizers.encoded import Encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("depth", 6), ("width", 128), ("heads", 4), ("side", 16), ("codes", 512), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    network = ImageGPT(Grid(args.side, args.side), args.codes, depth=args.depth, width=args.width, heads=args.heads)
    ours = imagegpt(ImageGPTBackbone(network, Encoded(args.codes), channels=1))
    nn.init.normal_(ours.predictor.project.weight, std=0.02)
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    config = transformers.ImageGPTConfig(
        vocab_size=args.codes + 1,
        n_positions=args.side**2,
        n_embd=args.width,
        n_layer=args.depth,
        n_head=args.heads,
        use_cache=False,
        **dropout,
    )
    theirs = transformers.ImageGPTForCausalImageModeling(config)
    theirs.load_state_dict(to_transformers(Weights(network.state_dict(), ours.predictor.project.weight.data)))
    ours, theirs = ours.to(args.device).train(), theirs.to(args.device).train()
    ids = torch.randint(args.codes, (args.batch, args.side**2), device=args.device)
    fed = torch.cat([torch.full_like(ids[:, :1], args.codes), ids[:, :-1]], dim=1)

    def our_loss() -> Tensor:
        return ours(ids.view(args.batch, 1, args.side, args.side)).loss

    def their_loss() -> Tensor:
        return F.cross_entropy(theirs(fed).logits.float().flatten(0, 1), ids.flatten())

    losses = [loss_of().item() for loss_of in (our_loss, their_loss)]
    assert abs(losses[0] - losses[1]) < 1e-5, f"the losses differ: {losses}"
    how = {"bf16": args.bf16, "device": args.device}
    steps = {"ours": training_step(ours, our_loss, **how), "transformers": training_step(theirs, their_loss, **how)}
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    found = side_by_side(steps, turns=args.rounds, device=args.device, dtype=dtype)
    print(", ".join(f"{key} {value}" for key, value in machine(args.device).items()), "bf16" if args.bf16 else "fp32")
    title = f"{args.batch} images of {args.side**2} codes, depth {args.depth}, width {args.width}, loss {losses[0]:.5f}"
    print(table(title, found, args.batch))


if __name__ == "__main__":
    main()
