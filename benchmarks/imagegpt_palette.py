"""Colors to codes: ours against transformers' ImageGPTImageProcessor, the same batches, in turns in one run.

    python benchmarks/imagegpt_palette.py --clusters ../shared/data/imagegpt_clusters.npy

Both get the same list of uint8 images of 32x32, already of the right size; the codes are compared. The table is built
before. The ratio is that of the fastest rounds, in CPU time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from patchcast.tokenizers.palette import Palette


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=Path, help="colors as .npy; random ones if not given")
    parser.add_argument("--codes", type=int, default=512, help="of random colors")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    palette = Palette(torch.rand(args.codes, 3, generator=generator) * 2 - 1)
    if args.clusters:
        palette = Palette(torch.from_numpy(np.load(args.clusters)))
    processor = transformers.ImageGPTImageProcessor(
        clusters=palette.colors.numpy(), size={"height": 32, "width": 32}, do_resize=False
    )
    start = time.process_time()
    table = palette.table
    print(
        f"table of {len(table):,} colors ready in {time.process_time() - start:.1f} s (from disk after the first time)"
    )
    # Smooth images, whose neighboring pixels are alike: noise would be kinder to neither, but is not what one encodes.
    coarse = torch.rand(args.batch, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    images = (images * 255).to(torch.uint8)
    listed = list(images)
    times: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(args.rounds):
        ours_time, ours = timed(lambda: palette.encode(torch.stack(listed)))
        theirs_time, theirs = timed(lambda: processor(listed, return_tensors="pt")["input_ids"])
        assert torch.equal(ours, theirs), "the codes differ"
        times["ours"].append(ours_time)
        times["transformers"].append(theirs_time)
    print(f"{args.batch} images of 32x32, {palette.vocabulary} colors, one thread, torch {torch.__version__}")
    for name, each in times.items():
        print(f"{name:>13}: {min(each) / args.batch * 1e6:.1f} microseconds an image")
    print(f"        ratio: {min(times['transformers']) / min(times['ours']):.0f}, codes equal")


if __name__ == "__main__":
    main()
