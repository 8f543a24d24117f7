"""A training step of ImageGPT: ours against transformers' class, the same weights and codes, in turns in one run.

    python benchmarks/imagegpt_training.py --depth 6 --width 128 --heads 4 --side 16 --batch 16

Forward, backward and the optimiser (torch's fused AdamW for both), in float32 or under bfloat16 autocast, without
dropout, as in the paper. Both score all n targets of n codes: theirs has no argument for that, so its logits of the
start token and all codes but the last are scored. The losses of the first step are compared. The ratio is that of the
fastest rounds: in CPU time on a CPU, which other work on the machine disturbs least; on a GPU in time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from patchcast.backbones.base import Grid
from patchcast.backbones.imagegpt import ImageGPT, ImageGPTBackbone
from patchcast.interop.imagegpt import Weights, to_transformers
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

    def step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

        def run() -> float:
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return run

    steps = {"ours": step(ours, our_loss), "transformers": step(theirs, their_loss)}
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    first = {}
    for round_ in range(args.rounds + 1):
        for name, run in steps.items():
            start = clock()
            loss = run()
            if round_ == 0:
                first[name] = loss  # and the time of the first step is not counted
            else:
                times[name].append(clock() - start)
    tolerance = 0.05 if args.bf16 else 1e-5
    assert abs(first["ours"] - first["transformers"]) < tolerance, f"the losses differ: {first}"
    precision = "bfloat16 autocast" if args.bf16 else "float32"
    print(
        f"{args.batch} images of {args.side**2} codes, depth {args.depth}, width {args.width}, {args.device}, "
        f"{precision}, one thread, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    for name, each in times.items():
        print(f"{name:>13}: {min(each):.3f} s a step (rounds: {', '.join(f'{one:.3f}' for one in each)})")
    print(f"        ratio: {min(times['transformers']) / min(times['ours']):.2f}, losses {first['ours']:.6f} alike")


if __name__ == "__main__":
    main()
