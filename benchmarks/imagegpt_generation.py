"""Drawing images with a key/value cache: ours against transformers' `generate`, the same weights, in turns in one run.

    python benchmarks/imagegpt_generation.py --depth 6 --width 128 --heads 4 --side 16 --batch 16

Both sample from the full softmax in float32. Each round times one after the other; the ratio is that of the fastest
rounds, which are least disturbed by whatever else the machine does.
"""

from __future__ import annotations

import argparse

import torch
import transformers
from side_by_side import seconds

from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.drawing.generation import sample
from patchcast.geometry import Grid
from patchcast.interop.imagegpt_weights import Weights, to_transformers
from patchcast.methods.imagegpt import imagegpt
from patchcast.tokenizers.encoded import Encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("depth", 6), ("width", 128), ("heads", 4), ("side", 16), ("codes", 512), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    network = ImageGPT(Grid(args.side, args.side), args.codes, depth=args.depth, width=args.width, heads=args.heads)
    ours = imagegpt(ImageGPTBackbone(network, Encoded(args.codes), channels=1)).eval()
    torch.nn.init.normal_(ours.predictor.project.weight, std=0.02)
    places = args.side**2
    config = transformers.ImageGPTConfig(
        vocab_size=args.codes + 1, n_positions=places, n_embd=args.width, n_layer=args.depth, n_head=args.heads
    )
    theirs = transformers.ImageGPTForCausalImageModeling(config).eval()
    theirs.load_state_dict(to_transformers(Weights(network.state_dict(), ours.predictor.project.weight.data)))
    ours, theirs = ours.to(args.device), theirs.to(args.device)
    start = torch.full((args.batch, 1), args.codes, device=args.device)

    def draw_ours() -> None:
        sample(ours, args.batch, batch_size=args.batch)

    def draw_theirs() -> None:
        theirs.generate(start, max_length=places + 1, do_sample=True, top_k=0, temperature=1.0)

    times: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(args.rounds):
        times["ours"].append(seconds(draw_ours, args.device))
        times["transformers"].append(seconds(draw_theirs, args.device))
    best = {name: min(each) for name, each in times.items()}
    print(f"{args.batch} images of {places} codes, depth {args.depth}, width {args.width}, {args.device}, ", end="")
    print(f"one thread, torch {torch.__version__}, transformers {transformers.__version__}")
    for name, each in times.items():
        print(f"{name:>13}: {min(each):.2f} s (rounds: {', '.join(f'{one:.2f}' for one in each)})")
    print(f"        ratio: {best['transformers'] / best['ours']:.1f}")


if __name__ == "__main__":
    main()
