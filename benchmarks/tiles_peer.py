"""`TorchtuneViT` beside torchtune's own tiled vision transformer: time, and breaks of the graph under torch.compile.

    python benchmarks/tiles_peer.py

The same weights, the same batch of images of 1x3, 2x2, 4x1 and 1x1 tiles, one thread, CPU time; the two are run by
turns, and the ratio is the median of the turns' ratios. Needs the peers extra.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchtune.models.clip import clip_vision_encoder

from patchcast.interop.torchtune_weights import TorchtuneViT, load_torchtune

SIZE = {"tile_size": 112, "patch_size": 14, "embed_dim": 192, "num_layers": 4, "num_heads": 6}
TURNS = 15


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def forward(model: nn.Module, tiles: Tensor, tile_grid: Tensor) -> None:
    with torch.no_grad():
        model(tiles.clone(), tile_grid)


def both_ways(model: nn.Module, tiles: Tensor, tile_grid: Tensor) -> None:
    model.zero_grad()
    model(tiles.clone(), tile_grid)[0].square().mean().backward()


def breaks(model: nn.Module, tiles: Tensor, tile_grid: Tensor) -> int:
    torch.compiler.reset()
    return torch._dynamo.explain(model)(tiles.clone(), tile_grid).graph_break_count


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs = clip_vision_encoder(**SIZE)
    masked = TorchtuneViT(**SIZE, sees_padding=False)
    ours = TorchtuneViT(**SIZE)
    for model in (ours, masked):
        load_torchtune(model, theirs.state_dict())
    tiles, tile_grid = torch.randn(2, 2, 4, 3, 112, 112), torch.tensor([[[1, 3], [2, 2]], [[4, 1], [1, 1]]])
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, {SIZE}")
    for name, run in {"forward": forward, "forward and backward": both_ways}.items():
        for told, model in {"ours": ours, "ours, padding masked": masked}.items():
            run(theirs, tiles, tile_grid), run(model, tiles, tile_grid)
            pairs = [
                (seconds(lambda: run(theirs, tiles, tile_grid)), seconds(lambda: run(model, tiles, tile_grid)))  # noqa: B023
                for _ in range(TURNS)
            ]
            ratio = statistics.median(mine / other for other, mine in pairs)
            mine, other = (1e3 * statistics.median(pair[i] for pair in pairs) for i in (1, 0))
            print(f"{name}, {told}: {mine:.0f} ms, torchtune {other:.0f} ms, ratio {ratio:.2f}", flush=True)
    for told, model in {"torchtune": theirs, "ours": ours, "ours, padding masked": masked}.items():
        print(f"breaks of the graph, {told}: {breaks(model.eval(), tiles, tile_grid)}", flush=True)


if __name__ == "__main__":
    main()
