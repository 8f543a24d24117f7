"""Memory and time of a training step on tiled images, as the number of tiles grows. On Linux; one thread.

    python benchmarks/tiles.py
    python benchmarks/tiles.py --model vit_small_patch16_224 --tile 224 --grids 1x1 2x2 3x3

A step is forward and backward over one batch, without the optimizer. Time is CPU time, so that other programs on the
machine do not count; memory is what the process peaks at above what it holds before the first step. Each case is
measured in a process of its own. Beside each method: features of all units, without gradients.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from patchcast.backbones import Grid, wrap
from patchcast.backbones.tiled import Tiled
from patchcast.methods import aim, ijepa, mae, simmim

METHODS: dict[str, Callable] = {
    "mae": lambda backbone: mae(backbone, decoder_width=96, decoder_depth=2),
    "simmim": simmim,
    "ijepa": lambda backbone: ijepa(backbone, predictor_depth=2),
    "aim": lambda backbone: aim(backbone, head_depth=2),
}


def held(field: str) -> int:
    """Bytes, from the kernel: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure(step: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Seconds of CPU time (the median) and bytes at the peak."""
    before = held("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # begins the peak anew
    times = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times), held("VmHWM") - before


def case(args: argparse.Namespace, method: str, grid: Grid) -> str:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tile = wrap(args.model, img_size=args.tile, depth=args.depth, embed_dim=args.width, num_heads=args.width // 32)
    backbone = Tiled(tile, grid)
    images = torch.randn(args.batch, 3, *backbone.image_size)
    if method == "features":

        @torch.no_grad()
        def step() -> None:
            backbone.eval().units(images)
    else:
        pretrainer = METHODS[method](backbone)

        def step() -> None:
            pretrainer.zero_grad()
            pretrainer(images).loss.backward()

    seconds, peak = measure(step, args.repeats)
    return f"{1e3 * seconds / args.batch:.0f} ms, {peak / args.batch / 2**20:.0f} MiB"


def in_a_child(args: argparse.Namespace, method: str, grid: Grid) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, case(args, method, grid).encode())
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read() if status == 0 else "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--grids", nargs="*", default=["1x1", "1x2", "2x2", "2x4", "3x4", "4x4"])
    for name, default in (("depth", 4), ("width", 128), ("batch", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(f"{args.model}, depth {args.depth}, width {args.width}, tiles of {args.tile}; each image of {args.batch}")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}"
    )
    ways = ["features", *METHODS]
    print("| tiles | units | " + " | ".join(ways) + " |")
    print("|" + "---|" * (len(ways) + 2))
    for text in args.grids:
        rows, cols = map(int, text.split("x"))
        units = rows * cols * (args.tile // 16) ** 2
        found = [in_a_child(args, way, Grid(rows, cols)) for way in ways]
        print(f"| {text} | {units} | " + " | ".join(found) + " |", flush=True)


if __name__ == "__main__":
    main()
