"""Everything about speed on a GPU, in one command of under nine minutes: `make bench-gpu`.

    python benchmarks/gpu.py --out runs/gpu.json

It needs a checkout, torch, timm and numpy; the package's other requirements may be absent, and peers are measured where
they can be imported. Steps are in bf16 with fused AdamW on images that are on the device already, eager and compiled,
each with its share of the rate at which the card multiplies large bf16 matrices. Then the same step fed by the loader
from JPEG files, drawing, losses against the CPU's in fp32, and the leak test to the bit. Results are written after each
part, so that a run that is cut short leaves what it has; parts for which no time is left are named.

`--device cpu --quick` takes the whole path with tiny networks, for tests.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

MAY_BE_ABSENT = {"jaxtyping", "rich", "pandas", "lightning", "pyarrow", "scipy", "sklearn", "matplotlib", "fsspec"}
"""Requirements of the package that no measurement here calls."""
SECONDS = 480.0
"""No part begins after this time."""


class Absent(MetaPathFinder, Loader):
    """Empty modules in place of packages that are not installed, so that files which only name them can be imported."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in MAY_BE_ABSENT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        class Empty(ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})

        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(Absent())  # asked last: only for what is not there
root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root / "src"), str(root / "benchmarks")]

from side_by_side import machine, peak, product_rate, training_step, work  # noqa: E402
from side_by_side import seconds as seconds_of  # noqa: E402
from steps import Contenders, mae_case, ours  # noqa: E402

from patchcast.backbones import wrap  # noqa: E402
from patchcast.backbones.imagegpt_network import IMAGEGPT_SIZES, ImageGPT, ImageGPTBackbone  # noqa: E402
from patchcast.geometry import Grid  # noqa: E402
from patchcast.honesty import no_leak, perturbed  # noqa: E402
from patchcast.methods import aim, ijepa, imagegpt, mae  # noqa: E402
from patchcast.pretrainer import Pretrainer  # noqa: E402
from patchcast.tokenizers.encoded import Encoded  # noqa: E402
from peers import DecoderSize  # noqa: E402

Case = tuple[Callable[[], Pretrainer], int]


def imagegpt_case(side: int, codes: int, **size: int) -> Pretrainer:
    network = ImageGPT(Grid(side, side), codes, causal=True, **size)
    return imagegpt(ImageGPTBackbone(network, Encoded(codes), channels=1))


CASES: dict[str, Case] = {
    "MAE ViT-B/16": (lambda: mae(wrap("vit_base_patch16_224")), 256),
    "MAE ViT-L/16": (lambda: mae(wrap("vit_large_patch16_224")), 128),
    "AIM ViT-L/14": (lambda: aim(wrap("vit_large_patch14_clip_224")), 64),
    "I-JEPA ViT-B/16": (lambda: ijepa(wrap("vit_base_patch16_224")), 128),
    "ImageGPT-S": (lambda: imagegpt_case(32, 512, **IMAGEGPT_SIZES["S"]._asdict()), 32),
}
QUICK: dict[str, Case] = {
    "MAE": (lambda: mae(wrap("test_vit", img_size=32), decoder_width=32, decoder_depth=1), 4),
    "AIM": (lambda: aim(wrap("test_vit", img_size=32), head_depth=1), 2),
    "I-JEPA": (lambda: ijepa(wrap("test_vit", img_size=96), predictor_width=32, predictor_depth=1), 2),
    "ImageGPT": (lambda: imagegpt_case(4, 16, depth=1, width=32, heads=2), 2),
}


def peers_of(quick: bool) -> Contenders:
    if quick:
        return mae_case(32, DecoderSize(32, 1, 1), "test_vit", 16)
    return mae_case(224, DecoderSize(512, 8, 16), "vit_base_patch16_224", 16)


class CountedGraphs:
    """A backend of `torch.compile` that counts how often its graphs are run: none means that the step ran eagerly."""

    def __init__(self, name: str) -> None:
        self.make, self.called = torch._dynamo.lookup_backend(name), 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        made = self.make(graph, inputs)

        def run(*values: Any) -> Any:
            self.called += 1
            return made(*values)

        return run


class Bench:
    """The parts, one method each; each returns what goes into the JSON."""

    def __init__(
        self, device: str, *, quick: bool, out: Path, seconds: float = SECONDS, only: list[str] | None = None
    ) -> None:
        self.device, self.quick, self.out, self.most = device, quick, out, seconds
        self.only = only
        self.turns = 2 if quick else 12
        self.cases = QUICK if quick else CASES
        self.began = time.perf_counter()
        self.results: dict[str, Any] = {"machine": machine(device), "skipped": []}

    def run(self) -> None:
        self.part("product_rate", self.rate)
        first = next(iter(self.cases))
        for name in self.cases:
            self.part(name, partial(self.step, name))
        self.part("correct", self.correct)
        self.part("peers", self.peers)
        self.part("with loader", partial(self.loaded, first))
        self.part("with loader, decoded on the device", partial(self.loaded, first, decodes=True))
        self.part("drawing", self.drawing)
        self.part("profile", partial(self.profile, first))
        for name in self.cases:
            self.part(f"{name}, compiled", partial(self.compiled, name))
        self.results["seconds"] = time.perf_counter() - self.began

    def part(self, name: str, measure: Callable[[], Any]) -> None:
        if self.only is not None and name not in self.only:
            return
        if time.perf_counter() - self.began > self.most:
            self.results["skipped"].append(name)
            return
        try:
            self.results[name] = measure()
        except (
            RuntimeError,
            ImportError,
            OSError,
            AttributeError,
            TypeError,
            ValueError,
        ) as problem:  # the next one runs
            self.results[name] = {"failed": f"{type(problem).__name__}: {problem}"[:400]}
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.results, indent=2) + "\n")
        print(f"{time.perf_counter() - self.began:6.1f} s  {name}: {json.dumps(self.results[name])[:150]}", flush=True)

    def rate(self) -> dict[str, float]:
        return {"bf16": product_rate(self.device, torch.bfloat16), "fp32": product_rate(self.device, torch.float32)}

    def images(self, pretrainer: Pretrainer, count: int) -> Tensor:
        backbone = pretrainer.backbone
        size = (count, backbone.channels, *backbone.image_size)
        if isinstance(backbone, ImageGPTBackbone):
            return torch.randint(backbone.tokenizer.vocabulary, size).to(self.device)
        return torch.randn(size).to(self.device)

    def step(self, name: str) -> dict[str, Any]:
        make, batch = self.cases[name]
        torch.manual_seed(0)
        pretrainer = make().to(self.device)
        return self.measured(self.step_of(pretrainer, batch), batch)

    def step_of(self, pretrainer: Pretrainer, batch: int) -> Callable[[], Any]:
        model, loss = ours(pretrainer)
        return training_step(model, partial(loss, self.images(pretrainer, batch)), bf16=True, device=self.device)

    def compiled(self, name: str) -> dict[str, Any]:
        """The same, compiled; the work is that of the eager step, since counting it would end compiling for good."""
        make, batch = self.cases[name]
        eager = self.results.get(name, {"failed": ""})
        if "failed" in eager:
            return {"failed": "the eager step failed or was not run"}
        torch._dynamo.reset()
        torch.manual_seed(0)
        pretrainer, graphs = make().to(self.device), CountedGraphs("aot_eager" if self.quick else "inductor")
        pretrainer.compile(backend=graphs)
        step = self.step_of(pretrainer, batch)
        found = self.measured(step, batch, gigaflops=eager["gigaflops"])
        graphs.called = 0
        step()
        return {**found, "graphs": graphs.called}

    def measured(self, step: Callable[[], Any], batch: int, *, gigaflops: float | None = None) -> dict[str, Any]:
        for _ in range(1 if self.quick else 4):
            step()
        taken = statistics.median(seconds_of(step, self.device) for _ in range(self.turns))
        gigaflops = work(step) if gigaflops is None else gigaflops
        share = gigaflops / taken / self.results["product_rate"]["bf16"]
        return {
            "batch": batch, "ms": 1e3 * taken, "images_per_second": batch / taken, "gigaflops": gigaflops,
            "share_of_product_rate": share, "peak_mib": peak(step, self.device) / 2**20, "kernels": self.kernels(step),
        }  # fmt: skip

    def profiled(self, step: Callable[[], Any]) -> Any:
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if self.device == "cuda" else []
        with torch.profiler.profile(activities=activities) as profile:
            step()
            if self.device == "cuda":
                torch.cuda.synchronize()
        return profile

    def kernels(self, step: Callable[[], Any]) -> int:
        """Kernels that a step launches; on a CPU, the operations."""
        kind = torch.autograd.DeviceType.CUDA if self.device == "cuda" else torch.autograd.DeviceType.CPU
        return sum(event.device_type == kind for event in self.profiled(step).events())

    def profile(self, name: str) -> dict[str, str]:
        make, batch = self.cases[name]
        pretrainer = make().to(self.device)
        model, loss = ours(pretrainer)
        step = training_step(model, partial(loss, self.images(pretrainer, batch)), bf16=True, device=self.device)
        step()
        key = "self_device_time_total" if self.device == "cuda" else "self_cpu_time_total"
        table = self.profiled(step).key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60)
        file = self.out.with_suffix(".profile.txt")
        file.write_text(table)
        return {"file": file.name}

    def peers(self) -> dict[str, Any]:
        """Peers at the sizes of the first case, in bf16; those that cannot be imported are named."""
        batch, found = next(iter(self.cases.values()))[1], dict[str, Any]()
        for name, make in peers_of(self.quick).items():
            if name == "ours":
                continue
            try:
                model, loss = make()
            except ImportError as problem:
                found[name] = {"failed": str(problem)}
                continue
            side = 32 if self.quick else 224
            images = torch.randn(batch, 3, side, side).to(self.device)
            step = training_step(model.to(self.device), partial(loss, images), bf16=True, device=self.device)
            found[name] = self.measured(step, batch)
        return found

    def correct(self) -> dict[str, Any]:
        """Losses in fp32 against the CPU's, with the same weights, images and plan; and the leak test in bf16."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        found = {}
        for name, (make, _) in self.cases.items():
            torch.manual_seed(0)
            here = perturbed(make()).eval()
            images = self.images(here, 2)
            plan = here.draw(images.cpu(), torch.Generator().manual_seed(0))
            with torch.no_grad():
                there = copy.deepcopy(here).to(self.device)
                losses = [float(here(images.cpu(), plan).loss), float(there(images, plan.to(self.device)).loss)]
            found[name] = {"cpu": losses[0], self.device: losses[1], "apart": abs(losses[0] - losses[1])}
            if not isinstance(here.backbone, ImageGPTBackbone):  # its noise would be no codes
                with torch.autocast(self.device, torch.bfloat16):
                    found[name]["leak"] = no_leak(there, images, plan.to(self.device), limit=4).worst
            found[name]["passes"] = found[name]["apart"] <= 1e-3 and not found[name].get("leak")
        return found

    def loaded(self, name: str, *, decodes: bool = False) -> dict[str, Any]:
        """The first case fed by the loader, from JPEG files that are decoded, cut, and augmented on the device.

        Args:
            decodes: whether the device decodes as well (`--decode gpu`); then also how far its pixels are from those of
                the CPU.
        """
        from PIL import Image

        from patchcast.data import Augment, Cutter, TrainSet, finish, open_images
        from patchcast.training.ahead import InPlace, SideStream, moved
        from patchcast.training.stream import Stream

        make, batch = self.cases[name]
        pretrainer = make().to(self.device)
        size, count = pretrainer.backbone.image_size, 16 if self.quick else 4 * batch
        augment = Augment(size, (0.2, 1.0), True, (0.5,) * 3, (0.25,) * 3)
        workers = 0 if self.quick else min(16, torch.multiprocessing.cpu_count())
        turns = self.turns if self.quick else 20
        with tempfile.TemporaryDirectory() as folder:
            for index in range(count):
                pixels = torch.rand(8, 8, 3).mul(255).byte().numpy()
                picture = Image.fromarray(pixels).resize((size[1] * 3 // 2, size[0] * 5 // 4), Image.Resampling.BICUBIC)
                picture.save(Path(folder) / f"{index}.jpg", quality=90)
            images, apart = open_images(folder), {}
            train_set: Any = TrainSet(images, Cutter(augment), seed=0)
            move = moved
            if decodes:
                from torchvision.io import ImageReadMode, decode_jpeg

                from patchcast.data.jpeg_batches import JPEGSet

                train_set = JPEGSet(images, Cutter(augment), seed=0)
                move = train_set.move
                files = [torch.frombuffer(images.encoded(index)[0], dtype=torch.uint8) for index in range(8)]
                there = decode_jpeg(files, ImageReadMode.RGB, torch.device(self.device))
                here = decode_jpeg(files, ImageReadMode.RGB)
                levels = [(one.cpu().float() - other.float()).abs() for one, other in zip(there, here, strict=True)]
                apart = {
                    "mean_levels_apart": float(torch.stack([one.mean() for one in levels]).mean()),
                    "most_levels_apart": max(float(one.max()) for one in levels),
                }
            stream = Stream(
                train_set,
                batch_size=batch,
                steps=turns + 3,
                seed=0,
                workers=workers,
                ahead=self.device == "cuda",
                move=move,
            )
            transfer = SideStream if self.device == "cuda" else InPlace
            batches = stream.batches(transfer(torch.device(self.device), move))
            model, loss = ours(pretrainer)

            def of_batch() -> Tensor:
                return loss(finish(augment, next(batches)[0]))

            step = training_step(model, of_batch, bf16=True, device=self.device)
            for _ in range(3):
                step()
            before = stream.waited
            taken = seconds_of(lambda: [step() for _ in range(turns)], self.device)
        return {
            "images_per_second": turns * batch / taken,
            "waiting": (stream.waited - before) / taken,
            "workers": workers,
            **apart,
        }

    def drawing(self) -> dict[str, float]:
        from patchcast.drawing.generation import sample

        make, batch = list(self.cases.values())[-1]
        pretrainer: nn.Module = make().to(self.device).eval()
        taken = seconds_of(lambda: sample(pretrainer, batch, batch_size=batch), self.device)
        return {"images": batch, "seconds": taken, "images_per_second": batch / taken}

    def table(self) -> str:
        lines = ["| | images/s | ms | of the bf16 product rate | peak MiB | kernels |", "|---|---|---|---|---|---|"]
        rows = {**self.results, **{f"peer: {name}": row for name, row in self.results.get("peers", {}).items()}}
        for name, row in rows.items():
            if isinstance(row, dict) and "ms" in row:
                share = f"{100 * row['share_of_product_rate']:.0f} %"
                cells = [f"{row['images_per_second']:,.0f}", f"{row['ms']:.1f}", share, f"{row['peak_mib']:,.0f}"]
                lines.append(f"| {name} | {' | '.join(cells)} | {row['kernels']:,} |")
            elif isinstance(row, dict) and "failed" in row:
                lines.append(f"| {name} | {row['failed'][:60]} | | | | |")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no part begins after this time")
    parser.add_argument("--only", nargs="+", help="parts by their names, product_rate and an eager row before others")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench-gpu measures on a GPU, and torch sees none here: nothing was measured.")
        return 0
    bench = Bench(args.device, quick=args.quick, out=args.out, seconds=args.seconds, only=args.only)
    bench.run()
    if unknown := {*(args.only or ())} - {*bench.results, *bench.results["skipped"]}:
        parser.error(
            f"no part is called {', '.join(sorted(unknown))}; parts are product_rate, {', '.join(bench.cases)}, ..."
        )
    args.out.write_text(json.dumps(bench.results, indent=2) + "\n")
    args.out.with_suffix(".md").write_text(bench.table() + "\n")
    print(f"\n{bench.table()}\n\n{args.out} has everything. It took {bench.results['seconds']:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
