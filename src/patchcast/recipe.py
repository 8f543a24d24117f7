"""`Recipe`: all options of a run, as plain values, for flags, YAML files and a run folder's config.yaml.

It imports neither torch nor timm, so that wrong options are reported at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from patchcast.backbones.capabilities import AUTO, METHOD_NAMES, Readout, is_imagegpt
from patchcast.files import write_text
from patchcast.ranges import ANY, AT_LEAST_1, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SEED, SHARE, Range, check_ranges
from patchcast.schedules import image_sizes

Precision = Literal["fp32", "bf16"]
AskedPrecision = Literal["auto", "fp32", "bf16"]
AskedBatch = int | Literal["auto"]
AttentionKernel = Literal["fused", "explicit"]
Device = Literal["auto", "cpu", "gpu"]
OptimizerName = Literal["adamw", "muon"]
DecodingDevice = Literal["cpu", "gpu"]
CropMode = Literal["center", "squash"]
SomeRecipe = TypeVar("SomeRecipe", bound="Recipe")

HELD_OUT = 0.05
"""Share of a source without a validation or test split that is held out from training."""
EARLIER: dict[str, Any] = {
    "held_out": 0.0,
    "crop_mode": "center",
    "readout": "mean",
    "attention": "fused",
    "epochs": 100.0,
    "batch_size": 256,
    "warmup": 0.05,
    "optimizer": "adamw",
    "layer_decay": 1.0,
    "freeze_first": 0,
    "ema": 0.0,
}
"""Options that configs and commands of earlier versions lack, and the values that reproduce those versions."""
NOT_LEARNED = frozenset(
    {
        *("out", "device", "workers", "devices", "nodes", "sharded", "accumulate", "compile", "checkpointing"),
        *("log_every", "eval_every", "checkpoint_every", "probe_data", "readout", "pictures", "tensorboard", "wandb"),
        "attention",
        "overwrite",
    }
)
"""Options that do not change what is learned (up to rounding): devices, speed and logging. A run may be resumed with
other values of these, and a model card leaves them out."""
MOST_BLOCKS = 1000
RANGES: dict[str, Range] = {
    **dict.fromkeys(("image_size", "tile_size", "patch_size", "channels", "steps", "batch_size"), AT_LEAST_1),
    **dict.fromkeys(("max_pixels", "packed", "teacher_size"), AT_LEAST_1),
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every", "devices", "nodes", "accumulate"), AT_LEAST_1),
    **dict.fromkeys(("epochs", "lr", "std", "minutes"), POSITIVE),
    **dict.fromkeys(("weight_decay", "clip", "workers"), NOT_NEGATIVE),
    **dict.fromkeys(("warmup", "betas", "held_out", "ema"), SHARE),
    **dict.fromkeys(("freeze_first", "freeze_blocks"), NOT_NEGATIVE),
    "layer_decay": POSITIVE_SHARE,
    "codes": Range(2),
    "mean": ANY,
    **dict.fromkeys(("start_bands", "teacher_blocks"), NOT_NEGATIVE),
    "crop_scale": POSITIVE_SHARE,
    "seed": SEED,
}
"""The ranges of all numbers in a recipe."""


@dataclass
class Recipe:
    """Pretrain a vision transformer on unlabeled images.

    Options that are left out follow from the model, the data and the method. All are written to config.yaml in the run
    folder.

    Args:
        method: one of `patchcast.METHODS`, or auto, which chooses by the model.
        model: any timm vision transformer, by name; for imagegpt and imagegpt_masked imagegpt_s, imagegpt_m,
            imagegpt_l or imagegpt_xl, or imagegpt with depth, width and heads as model_args. With start it may be left
            out: it is then the model of those weights.
        data: a folder of images; parquet or tar files or folders of them (also as shard-{000..009}.tar, or by URL);
            hf:NAME or hf-stream:NAME of a Hugging Face dataset; digits or mnist-5k, which come inside packages. See
            docs/data.md.
        out: the run folder.
        method_args: options of the method, such as mask_ratio of mae; see the method's page.
        model_args: arguments of timm's create_model, or of the ImageGPT network.
        pretrained: start from timm's weights of the model: the same as start with the model's name.
        start: weights to start from instead of random ones: a timm model with its tag, hf-hub:NAME, local-dir:FOLDER, a
            run folder, a folder of timm or transformers, or a file (.safetensors, .pth, .pt, .bin, .ckpt). See
            docs/start.md.
        start_bands: which three of the images' channels, counted from 0, are red, green and blue, if the images have
            more channels than the start. Default: of 4 channels the first three; of others none, and the first layer
            starts from random weights.
        teacher: a trained network whose features are predicted, by the same words as start: by distill instead of
            pixels, by mae together with them. It is read from there again when the run is resumed. See docs/teacher.md.
        teacher_blocks: whose outputs are predicted, counted from 0: stages, of a convolutional network. Default: the
            teacher's final features.
        teacher_size: height and width in pixels at which the teacher sees the images. Default: its own.
        freeze_first: optimizer steps in which the backbone is frozen and only the rest (decoder, predictor) is trained.
            Default: a tenth of the steps, if the run starts from weights without a decoder or predictor; else 0.
        freeze_blocks: number of blocks, from the first one, that are not trained, with the layers before them.
        layer_decay: learning rate of each block relative to the next one. Default: 0.75 if the run starts from weights;
            else 1.
        ema: decay of an average of the weights over the steps; 0 for none. If its loss on held-out images is lower at
            the end, it is what the run saves. Default: 0.999 if the run starts from weights; else 0.
        image_size: height and width in pixels. Default: the model's; if the images are smaller, the size nearest to
            theirs that gives about as many patches as the model has on its own size. See docs/training.md.
        sizes: sizes of images during the run, each with the share of the steps from which on it is used, such as 32@0
            64@0.5; the last one is image_size. Positions are resampled. Default: image_size throughout.
        tile_size: pixels per side of a tile. Images are cut into tiles of this size, and the model, built for one
            tile, runs over all tiles together. Default: images are not cut.
        patch_size: pixels per side of a patch. Default: the model's; if images are smaller than the model's, the
            largest with at least half as many patches per side as the model has. Pretrained models keep their own.
        channels: 1, 3 or 4 channels per image, or as many as the files have. Default: the data's.
        image_column: of parquet files and datasets, where it is not called image or by another usual name.
        label_column: likewise, of the labels, which probes need.
        max_pixels: maximum number of pixels of an image; larger ones are skipped. Default: 178,956,970.
        packed: decode the training images once, into one file in the cache folder that every epoch reads, each shrunk
            until its shorter side has at most this number of pixels. Default: files are decoded in every epoch.
        decode: gpu decodes ordinary JPEGs on the GPU, by torchvision's nvJPEG. Pixels differ by some levels. See
            docs/data-order.md. Default: cpu.
        codes: number of codes that beit and imagegpt predict, found in the data's patches or colors. Default: 512.
        tokenizer: a saved palette or codebook to use instead. A copy is saved in the run folder.
        mean: of each channel, where white is 1. Default: measured on the data; the model's if it is pretrained.
        std: standard deviation of each channel, likewise.
        crop_scale: smallest and largest share of the image area that a random crop covers. Default: the method's.
        crop_mode: how an image that is not cropped at random comes to image_size, in timm's words: "center" resizes it
            until it just covers that size and cuts its center out, "squash" resizes all of it, whatever its shape.
            Default: squash for imagegpt and imagegpt_masked, as transformers' processor can do no other; else center.
        flip: mirror half of the images. Not for digits, letters or anything else that has a handedness.
        held_out: share of the images that is held out from training, for the evaluation loss and for pictures, where
            the data has no validation or test split; at most 2,000 images. 0 holds out none. Default: 0.05.
        epochs: passes over the data; ignored if steps is given. Default: 100, or as many as 10,000 steps take.
        steps: optimizer steps.
        minutes: train for about this time instead: the speed of the first steps decides their number, and the schedule
            follows. See docs/costs.md.
        batch_size: images per step. Default: by the number of images, 32 to 2,048; see docs/which.md. auto: the same,
            in as many micro-batches (accumulate) as the free memory asks for.
        lr: peak learning rate. Default: the paper's, by the root of the batch and the width of the model; a quarter of
            it if the run starts from weights.
        optimizer: adamw, or muon: Muon for the matrices of blocks, and AdamW for all else, at the same rate. Default:
            by the rule of docs/which.md: muon for most methods on few images; else adamw.
        betas: of AdamW. Default: the method's.
        weight_decay: of weight matrices. Default: the method's.
        warmup: share of the steps over which the learning rate rises. Default: 0.05.
        clip: maximum norm of the gradient; 0 turns clipping off. Default: the method's.
        precision: fp32, bf16 or auto: bf16 on a GPU that has it; on the CPU both are measured at the start of a run of
            two minutes or more, and the faster one is taken. Default: auto.
        attention: in training: fused (torch's kernel) or explicit (plain products, more memory). Default: fused, or
            explicit where precision is measured and it is faster in bf16.
        device: auto, cpu or gpu.
        workers: processes that read and augment images. Default: none on the CPU, which training needs itself; on a
            GPU one per core, up to 8.
        seed: of everything random.
        log_every: steps between two rows of metrics.csv.
        eval_every: steps between two evaluations on held-out images. Default: ten evaluations in the run.
        checkpoint_every: steps between two checkpoints. Default: ten checkpoints in the run.
        probe_data: a labeled source, which may be the same as data. At every evaluation, metrics.csv gets the accuracy
            of the 20 nearest neighbors and of a linear classifier. It does not change what is learned. Default: data
            itself, with 500 images, if it has labels and the run starts from weights; "none" turns this off.
        readout: how the units of an image become the feature that these probes use. Default: mean_std.
        pictures: at every evaluation, draw what the model predicts for eight images into the run folder's images/.
        tensorboard: also log to TensorBoard, in the run folder.
        wandb: also log to Weights & Biases, into the project of this name.
        devices: GPUs per machine (or processes on the CPU) that share each batch.
        nodes: machines that share each batch; start the command on each with torchrun or SLURM.
        sharded: shard weights and optimizer state over the devices (FSDP2) instead of copying them to each.
        accumulate: number of micro-batches in which each device computes its part of a batch.
        compile: compile the model with torch.compile, which takes a minute at the start.
        checkpointing: recompute the activations of blocks instead of storing them: slower, with less memory.
        overwrite: throw away the run that is in out. The same command resumes what it began until that is finished.
    """

    method: str = field(metadata={"names": (*METHOD_NAMES, AUTO)})
    model: str
    data: str
    out: Path
    method_args: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    start: str | None = None
    start_bands: tuple[int, int, int] | None = None
    teacher: str | None = None
    teacher_blocks: tuple[int, ...] | None = None
    teacher_size: int | None = None
    freeze_first: int | None = None
    freeze_blocks: int = 0
    layer_decay: float | None = None
    ema: float | None = None
    image_size: tuple[int, int] | None = None
    sizes: tuple[str, ...] | None = None
    tile_size: int | None = None
    patch_size: int | None = None
    channels: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    max_pixels: int | None = None
    packed: int | None = None
    decode: DecodingDevice = "cpu"
    codes: int | None = None
    tokenizer: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_scale: tuple[float, float] | None = None
    crop_mode: CropMode | None = None
    flip: bool | None = None
    held_out: float | None = None
    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: AskedBatch | None = None
    lr: float | None = None
    optimizer: OptimizerName | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    clip: float | None = None
    precision: AskedPrecision | None = None
    attention: AttentionKernel | None = None
    device: Device = "auto"
    workers: int | None = None
    seed: int = 0
    log_every: int = 10
    eval_every: int | None = None
    checkpoint_every: int | None = None
    probe_data: str | None = None
    readout: Readout | None = None
    pictures: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    devices: int = 1
    nodes: int = 1
    sharded: bool = False
    accumulate: int = 1
    compile: bool = False
    checkpointing: bool = False
    overwrite: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for YAML."""
        values = dataclasses.asdict(self)
        return {name: _plain(value) for name, value in values.items()}

    def check(self) -> None:
        """Check the range of every number, before anything is written.

        Raises:
            ValueError: for the first number that is out of range.
        """
        check_ranges({**vars(self), "batch_size": self.given_batch}, RANGES)
        others = [f"steps={self.steps}"] if self.steps is not None else []
        others += [f"epochs={self.epochs:g}"] if self.epochs is not None else []
        if self.minutes is not None and others:
            raise ValueError(f"minutes={self.minutes:g} and {others[0]} both say how long to train; leave one out")
        for option in ("model_args", "method_args"):
            _check_numbers(option, getattr(self, option))
        if self.sizes is not None:
            self._check_sizes(image_sizes(self.sizes)[-1][1])
        if "pretrained" in self.model_args:
            raise ValueError("model_args gives 'pretrained'; leave it out and give --pretrained")
        if self.sharded and self.optimizer == "muon":
            raise ValueError(
                "a run with Muon, which needs whole matrices, cannot be sharded: leave out sharded, or give a new run "
                "optimizer adamw"
            )
        if self.pretrained and self.start is not None:
            raise ValueError(f"pretrained and start={self.start} both name weights to start from; leave one out")
        if not self.model and self.start is None:
            raise ValueError("give a model, or start from weights whose model is known: --model NAME or --start WORDS")
        if self.start_bands is not None and self.start_words is None:
            raise ValueError("start_bands is for runs that start from weights; give start, or leave it out")
        if self.start_bands is not None and len(set(self.start_bands)) != 3:
            raise ValueError(f"start_bands names three different channels; got {list(self.start_bands)}")
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale is the smallest and the largest share; got {list(self.crop_scale)}")
        lengths = {len(values) for values in (self.mean, self.std) if values is not None} - {1}  # one is for all
        if self.mean is not None and self.std is not None and len(lengths) > 1:
            raise ValueError(f"mean and std have one number per channel; got {len(self.mean)} and {len(self.std)}")

    def _check_sizes(self, last: tuple[int, int]) -> None:
        check_ranges({"image_size": last}, {"image_size": AT_LEAST_1})
        if self.image_size not in (None, last):
            raise ValueError(
                f"the last of sizes is that of the network, {last[0]}x{last[1]}, and image_size is "
                f"{self.image_size[0]}x{self.image_size[1]}; leave out image_size"
            )
        if self.tile_size is not None:
            raise ValueError("tiles have one size: leave out sizes or tile_size")
        if is_imagegpt(self.model):
            raise ValueError("codes of images are cached at one size: leave out sizes")

    @property
    def given_batch(self) -> int | None:
        """Images per step, if they are given: `auto` leaves them to the rule of defaults, as None does."""
        return None if self.batch_size == "auto" else self.batch_size

    @property
    def start_words(self) -> str | None:
        """What names the weights that the run starts from; None if they are random."""
        return self.model if self.pretrained else self.start

    def reads(self, data: str) -> bool:
        """Whether a source is this recipe's own: of the same name, or the same file or folder in another spelling.

        >>> Recipe("mae", "test_vit", ".", Path("runs/a")).reads("./")
        True
        """
        if data == self.data:
            return True
        named, own = Path(data), Path(self.data)
        return named.exists() and own.exists() and named.samefile(own)

    def differences(self, other: Recipe, *, besides: Collection[str] = ()) -> str:
        """The options that differ between two recipes, as text; empty if none.

        Options in `NOT_LEARNED`, and those of `besides`, are not compared.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        differing = [name for name in mine if name not in (*NOT_LEARNED, *besides) and mine[name] != theirs[name]]
        return ", ".join(f"{name} is {theirs[name]} there and {mine[name]} here" for name in differing)

    def save(self, file: Path) -> None:
        import yaml

        heading = f"# Run again with: patchcast pretrain --config {file.name} --out ANOTHER_FOLDER\n"
        write_text(file, heading + yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls: type[SomeRecipe], file: Path) -> SomeRecipe:
        """Read a recipe from YAML.

        Raises:
            ValueError: if the file is not a recipe, or has unknown options.
        """
        values = _read_yaml(file)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - known))
        if unknown:
            raise ValueError(f"{file} has unknown options: {', '.join(unknown)}")
        if values.get("start") is not None:
            values.setdefault("model", "")
        required = [field.name for field in dataclasses.fields(cls) if _is_required(field)]
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"{file} is not a complete recipe: it has no {', '.join(missing)}")
        if isinstance(values.get("image_size"), int):
            values["image_size"] = [values["image_size"]] * 2
        for name in ("image_size", "sizes", "mean", "std", "crop_scale", "betas", "start_bands", "teacher_blocks"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        for name in ("epochs", "minutes", "lr", "weight_decay", "warmup", "clip", "held_out", "layer_decay", "ema"):
            if values.get(name) is not None:  # people write 5, and YAML reads 1e-3 as text
                values[name] = _as_float(values[name], name, file)
        for name in ("out", "tokenizer"):
            if isinstance(values.get(name), str):
                values[name] = Path(values[name])
        _check_types(values, cls, file)
        return cls(**values)


@dataclass(kw_only=True)
class Resolved(Recipe):
    """A recipe with a value for every option, as in a run's config.yaml."""

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_scale: tuple[float, float]
    crop_mode: CropMode = EARLIER["crop_mode"]
    layer_decay: float = EARLIER["layer_decay"]
    freeze_first: int = EARLIER["freeze_first"]
    ema: float = EARLIER["ema"]
    flip: bool
    steps: int
    lr: float
    optimizer: OptimizerName = EARLIER["optimizer"]
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    precision: Precision
    workers: int
    eval_every: int
    checkpoint_every: int
    held_out: float = EARLIER["held_out"]
    readout: Readout = EARLIER["readout"]
    attention: AttentionKernel = EARLIER["attention"]
    epochs: float = EARLIER["epochs"]
    batch_size: int = EARLIER["batch_size"]
    warmup: float = EARLIER["warmup"]

    def phases(self) -> list[tuple[int, tuple[int, int]]]:
        """The sizes of images during the run, each with the step from which on it is used."""
        if self.sizes is None:
            return [(0, self.image_size)]
        return [(round(share * self.steps), size) for share, size in image_sizes(self.sizes)]

    @classmethod
    def load(cls: type[SomeRecipe], file: Path) -> SomeRecipe:
        """Read a run's config.yaml; errors as of `Recipe.load`."""
        try:
            return super().load(file)
        except ValueError as problem:
            raise ValueError(f"{problem}; put back the file that the run wrote, or choose another folder") from problem


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(f"{file} is not a recipe in YAML: {reason}") from problem
    except OSError as problem:
        raise ValueError(f"{file} cannot be read: {problem.strerror}") from problem
    if not isinstance(values, dict):
        raise ValueError(f"{file} is not a recipe: it has no options")
    return values


def _check_types(values: dict[str, Any], recipe: type[Recipe], file: Path) -> None:
    """Refuse what is no value of an option: of a damaged file, or of somebody else's."""
    hints = get_type_hints(recipe)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{file}: {name} has another kind of value than a recipe; got {value!r}")
    for option in ("model_args", "method_args"):
        _check_numbers(option, values.get(option) or {})


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return isinstance(value, str)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(one, parts[0]) for one in value)
    if kind in (int, float):
        is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return isinstance(value, kind)


def _check_numbers(option: str, args: dict[str, Any]) -> None:
    """Refuse numbers that no network takes, before it is built: of 100,000 blocks, it would not be for minutes."""
    for name, value in args.items():
        numbers = [value] if isinstance(value, (int, float)) else value if isinstance(value, (list, tuple)) else []
        numbers = [number for number in numbers if isinstance(number, (int, float))]
        if not all(math.isfinite(number) and (number >= 0 or option == "method_args") for number in numbers):
            wanted = "finite" if option == "method_args" else "finite and not negative"
            raise ValueError(f"numbers in {option} must be {wanted}; got {name}: {value!r}")
        if name.endswith("_rate") and any(number >= 1 for number in numbers):
            raise ValueError(f"rates in {option} must be below 1; got {name}: {value!r}")
        if "depth" in name and sum(numbers) > MOST_BLOCKS:
            raise ValueError(f"a network of more than {MOST_BLOCKS:,} blocks is not built; got {name}: {value!r}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _as_float(value: Any, name: str, file: Path) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{file}: {name} is a number; got {value!r}") from problem


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
