"""Several ways of doing the same thing measured in one run: by turns, with memory and the limit of the machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], Any]


@dataclass(frozen=True)
class Measured:
    """Of one contender.

    Attributes:
        seconds: the median of its turns: processor time on a CPU, which other work on the machine disturbs least, and
            time on a GPU.
        ratio: the median over all turns of its time by the first contender's in the same turn: above 1 it is slower.
        mebibytes: what one turn allocates at its peak above what was there before.
        gigaflops: multiplications and additions of one turn in matrix products, as torch counts them.
        utilisation: its share of the rate at which the machine multiplies large matrices in that precision.
    """

    name: str
    seconds: float
    ratio: float
    mebibytes: float
    gigaflops: float
    utilisation: float


def seconds(run: Step, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(steps: Mapping[str, Step], *, turns: int, device: str, dtype: torch.dtype) -> list[Measured]:
    """Each step once by turns, after two turns that are not counted; the first is what the others are compared with.

    A turn has the same seed for all of them, so that those that draw in the same way draw the same.
    """
    for _ in range(2):
        for step in steps.values():
            step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns):
        order = list(steps) if turn % 2 == 0 else list(steps)[::-1]
        for name in order:
            torch.manual_seed(turn)
            taken[name].append(seconds(steps[name], device))
    limit, found = product_rate(device, dtype), []
    for name, step in steps.items():
        gigaflops = work(step)
        median = statistics.median(taken[name])
        ratio = statistics.median(
            mine / first for mine, first in zip(taken[name], taken[next(iter(steps))], strict=True)
        )
        share = gigaflops / median / limit
        found.append(Measured(name, median, ratio, peak(step, device) / 2**20, gigaflops, share))
    return found


def work(step: Step) -> float:
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def peak(step: Step, device: str) -> int:
    """Bytes that torch's allocator hands out at most during a step, above what it had handed out before."""
    torch.manual_seed(0)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Gigaflops a second of products of large square matrices: what no step can exceed."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b, device) for _ in range(12))
    return 2 * size**3 / best / 1e9


def training_step(model: nn.Module, loss_of: Callable[[], Tensor], *, bf16: bool, device: str) -> Step:
    """Forward, backward and a fused AdamW step; the same for everybody."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def machine(device: str) -> dict[str, Any]:
    packages = ("torch", "timm", "lightly", "stable-pretraining", "transformers")
    versions = {name: _version(name) for name in packages}
    where = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {torch.get_num_threads()} thread(s)"
    return {"device": where, **{name: number for name, number in versions.items() if number}}


def table(title: str, rows: list[Measured], batch: int) -> str:
    lines = [
        f"\n{title}",
        "| | images/s | time, ours = 1 | peak MiB | GFLOP | of the product rate |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{batch / row.seconds:.1f}", f"{row.ratio:.2f}", f"{row.mebibytes:.0f}", f"{row.gigaflops:.1f}"]
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {100 * row.utilisation:.0f} % |")
    return "\n".join(lines)


def write(file: Path, found: Mapping[str, list[Measured]], device: str) -> None:
    cases = {name: [asdict(row) for row in rows] for name, rows in found.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine(device), "cases": cases}, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Its name and family, and whether it multiplies in bfloat16, as Linux gives them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
        has_bf16 = {"avx512_bf16", "amx_bf16"} & set(said["flags"].split())
        return f"{said['model name']}, family {said['cpu family']}, {'with' if has_bf16 else 'without'} bf16"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
