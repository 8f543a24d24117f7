"""The command line. Nothing heavy is imported before a command is known and its options are checked."""

from __future__ import annotations

import difflib
import io
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patchcast import __version__, options
from patchcast.folder_files import CONFIG
from patchcast.plain import speak_plainly, visible
from patchcast.recipe import Recipe
from patchcast.stages import show_stages, stage

STARTING = "Loading torch and timm"


@dataclass(frozen=True)
class Command:
    """A command: its options and the function that runs it.

    Attributes:
        options: a dataclass; its docstring describes the command.
        run: takes the options; returns an exit code, or None for 0.
        from_file: whether `--config FILE` gives options too.
        groups: titles in the help, and the options under them; the others come first.
        examples: command lines at the end of the help.
    """

    options: type
    run: Callable[[Any], int | None]
    from_file: bool = False
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    examples: Sequence[str] = ()

    @property
    def description(self) -> str:
        return (self.options.__doc__ or "").partition("\n")[0]


@dataclass(kw_only=True)
class ProbeCommand:
    """What was typed after `patchcast probe`: the common options, and those of one protocol."""

    common: options.ProbeOptions
    protocol: str
    chosen: Any
    typed: str = field(default="")


@dataclass(kw_only=True)
class PretrainCommand:
    """What was typed after `patchcast pretrain`: the recipe, and whether to run it."""

    recipe: Recipe
    dry_run: bool


def _pretrain(given: PretrainCommand) -> None:
    from patchcast.early_checks import check_recipe

    check_recipe(given.recipe)

    with stage(STARTING):
        from patchcast.commands.pretrain import dry_run, pretrain

    (dry_run if given.dry_run else pretrain)(given.recipe)


def _probe(given: ProbeCommand) -> None:
    from patchcast.early_checks import check_data, check_network

    for name in (given.common.source, *given.common.against):
        check_network(name)
    check_data(given.common.data)

    with stage(STARTING):
        from patchcast.commands.probe import probe

    probe(given.common, given.protocol, given.chosen, typed=given.typed)


def _compare(given: options.Compare) -> None:
    from patchcast.early_checks import check_data, check_network

    for name in (*map(str, given.runs), *given.against):
        check_network(name)
    check_data(given.data)

    with stage(STARTING):
        from patchcast.commands.compare import compare

    compare(**vars(given))


def _report(given: options.ReportOptions) -> None:
    from patchcast.early_checks import check_reported

    for run in given.runs:
        check_reported(run)

    with stage(STARTING):
        from patchcast.commands.report import report

    report(given.runs, out=given.out, data=given.data)


def _show(given: options.Show) -> None:
    from patchcast.early_checks import check_run

    check_run(given.run)

    with stage(STARTING):
        from patchcast.commands.show import show

    show(**vars(given))


def _embed(given: options.Embed) -> None:
    from patchcast.early_checks import check_data, check_network

    check_network(given.model)
    check_data(given.data)

    with stage(STARTING):
        from patchcast.commands.embed import write_features

    values = vars(given)
    write_features(values.pop("model"), kind=values.pop("features"), **values)


def _finetune(given: options.FinetuneClassifier) -> None:
    from patchcast.early_checks import check_data, check_network

    check_network(given.model)
    check_data(given.data)

    with stage(STARTING):
        from patchcast.commands.finetune import finetune_classifier

    finetune_classifier(given)


def _predict(given: options.Predict) -> None:
    from patchcast.early_checks import check_classifier, check_data

    check_classifier(given.model)
    check_data(given.data)

    with stage(STARTING):
        from patchcast.commands.predict import predict

    predict(given)


def _search(given: options.Search) -> None:
    from patchcast.early_checks import check_data, check_network

    check_network(given.model)
    check_data(given.data)

    with stage(STARTING):
        from patchcast.commands.search import search

    search(given)


def _sample(given: options.Sample) -> None:
    from patchcast.early_checks import check_run

    check_run(given.run)

    with stage(STARTING):
        from patchcast.commands.sample import draw_samples

    draw_samples(**vars(given))


def _complete(given: options.Complete) -> None:
    from patchcast.early_checks import check_run

    check_run(given.run)

    with stage(STARTING):
        from patchcast.commands.complete import draw_completions

    draw_completions(**vars(given))


def _export(given: options.Export) -> None:
    from patchcast.early_checks import check_exported

    check_exported(given.run)

    with stage(STARTING):
        from patchcast.commands.export import export

    export(**vars(given))


def _push(given: options.Push) -> None:
    from patchcast.early_checks import check_run

    check_run(given.run)

    with stage(STARTING):
        from patchcast.commands.push import push

    push(**vars(given))


def _check(given: options.Check) -> int:
    with stage(STARTING):
        from patchcast.commands.check import run_check

    return 0 if run_check(**vars(given)) else 1


def _data(given: options.Data) -> int:
    from patchcast.early_checks import check_data

    check_data(given.source)

    with stage(STARTING):
        from patchcast.commands.data import check_source

    splits = given.split or None
    reading = {name: getattr(given, name) for name in ("image_column", "label_column", "max_pixels")}
    is_sound = check_source(
        given.source, splits=splits, limit=given.limit, workers=given.workers, out=given.out, **reading
    )
    return 0 if is_sound else 1


def _models(given: options.Models) -> None:
    from patchcast.commands.models import models
    from patchcast.early_checks import method_called

    models(given.pattern, None if given.method is None else method_called(given.method))


def _demo(given: options.Demo) -> None:
    with stage(STARTING):
        from patchcast.commands.demo import demo

    demo(given.out, table=given.table)


def _doctor(given: options.Doctor) -> int:
    from patchcast.commands.doctor import doctor

    return 0 if doctor() else 1


def _completion(given: options.Completion) -> None:
    from patchcast.arguments import fields_of
    from patchcast.commands.shell import completion

    words: dict[str, dict[str, list[str]]] = {}
    for name, command in COMMANDS.items():
        kinds = [command.options, *(options.PROBES.values() if name == "probe" else ())]
        fields = [field for kind in kinds for field in fields_of(kind).values() if not field.metavar]
        words[name] = {f"--{field.name}": field.choices for field in fields} | {"--help": []}
        words[name] |= {f"--no_{field.name}": [] for field in fields if field.is_flag and field.default is True}
        words[name] |= {"--config": []} if command.from_file else {}
    print(completion(given.shell, words), end="")


RECIPE_GROUPS = {
    "images": (
        "image_size",
        "sizes",
        "crop_mode",
        "channels",
        "mean",
        "std",
        "crop_scale",
        "flip",
        "tile_size",
        "held_out",
        "image_column",
        "label_column",
        "max_pixels",
        "packed",
        "decode",
    ),
    "method and model": (*("method_args", "model_args", "patch_size", "codes", "tokenizer"),),
    "teacher": ("teacher", "teacher_blocks", "teacher_size"),
    "weights to start from": (
        *("pretrained", "start", "start_bands", "freeze_first", "freeze_blocks", "layer_decay", "ema"),
    ),
    "training": (
        "epochs",
        "steps",
        "minutes",
        "batch_size",
        "lr",
        "optimizer",
        "betas",
        "weight_decay",
        "warmup",
        "clip",
        "seed",
    ),
    "log": ("log_every", "eval_every", "checkpoint_every", "probe_data", "readout", "pictures", "tensorboard", "wandb"),
    "hardware": (
        *(
            "device",
            "precision",
            "attention",
            "workers",
            "devices",
            "nodes",
            "sharded",
            "accumulate",
            "compile",
            "checkpointing",
        ),
    ),
}

COMMANDS: dict[str, Command] = {
    "pretrain": Command(
        Recipe,
        _pretrain,
        from_file=True,
        groups=RECIPE_GROUPS,
        examples=(
            "patchcast pretrain --method mae --model vit_tiny_patch16_224 --data FOLDER --out runs/first",
            "patchcast pretrain --config runs/first/config.yaml --seed 1 --out runs/second",
        ),
    ),
    "probe": Command(
        options.ProbeOptions,
        _probe,
        examples=(
            "patchcast probe runs/first --data LABELED_FOLDER",
            "patchcast probe vit_small_patch16_224 --data LABELED_FOLDER --per_class 1 5 --out probe.json",
        ),
    ),
    "compare": Command(
        options.Compare,
        _compare,
        examples=(
            "patchcast compare runs/first runs/second --data LABELED_FOLDER --out compared.parquet",
            "patchcast compare runs/first --no_supervised --against vit_tiny_patch16_224 --out compared.parquet",
        ),
    ),
    "report": Command(
        options.ReportOptions,
        _report,
        examples=(
            "patchcast report runs/first",
            "patchcast report models/first",
            "patchcast report runs/* models/* compared.parquet --out compared.html",
        ),
    ),
    "show": Command(
        options.Show,
        _show,
        examples=("patchcast show runs/first", "patchcast show runs/first photo.jpg other.jpg --out shown.png"),
    ),
    "embed": Command(
        options.Embed,
        _embed,
        examples=(
            "patchcast embed runs/first --data FOLDER --out features.parquet",
            "patchcast embed vit_tiny_patch16_224 --data FOLDER --features maps --out maps.safetensors",
        ),
    ),
    "finetune": Command(
        options.FinetuneClassifier,
        _finetune,
        groups={
            "classifier": (
                *(
                    "task",
                    "multi_label",
                    "freeze",
                    "head",
                    "epochs",
                    "lr",
                    "batch_size",
                    "layer_decay",
                    "augment",
                    "flip",
                    "mixup",
                    "cutmix",
                ),
                *("smoothing", "class_weights"),
            ),
            "images": ("limit_per_class", "image_size", "image_column", "label_column", "max_pixels"),
        },
        examples=(
            "patchcast finetune runs/first --data LABELED_FOLDER --out models/first",
            "patchcast finetune vit_tiny_patch16_224 --data LABELED_FOLDER --out models/tiny --mixup 0.8",
        ),
    ),
    "predict": Command(
        options.Predict,
        _predict,
        examples=(
            "patchcast predict models/first new_photos --out predictions.csv",
            "patchcast predict runs/first photo.jpg other.jpg --data LABELED_FOLDER",
        ),
    ),
    "search": Command(
        options.Search,
        _search,
        examples=(
            "patchcast search runs/first photo.jpg --data FOLDER",
            "patchcast search vit_small_patch14_dinov2 photo.jpg --data photos.parquet --count 23 --out nearest.png",
        ),
    ),
    "sample": Command(
        options.Sample,
        _sample,
        examples=("patchcast sample runs/pixels", "patchcast sample runs/pixels --count 64 --temperature 0.9"),
    ),
    "complete": Command(
        options.Complete,
        _complete,
        examples=("patchcast complete runs/pixels", "patchcast complete runs/pixels photo.jpg --copies 8"),
    ),
    "export": Command(
        options.Export,
        _export,
        examples=("patchcast export runs/first --out weights", "patchcast export runs/first --to onnx --out weights"),
    ),
    "push": Command(
        options.Push,
        _push,
        examples=("patchcast push runs/first NAME/my-vit", "patchcast push runs/first NAME/my-vit --private"),
    ),
    "check": Command(
        options.Check,
        _check,
        examples=("patchcast check runs/first", "patchcast check recipes/eurosat_mae.yaml"),
    ),
    "data": Command(
        options.Data,
        _data,
        examples=("patchcast data check FOLDER", "patchcast data check photos.parquet --split test --limit 1000"),
    ),
    "models": Command(
        options.Models,
        _models,
        examples=("patchcast models swin", "patchcast models 'vit_*' --method mae"),
    ),
    "demo": Command(options.Demo, _demo, examples=("patchcast demo", "patchcast demo --table --out runs/digits")),
    "doctor": Command(options.Doctor, _doctor, examples=("patchcast doctor",)),
    "completion": Command(
        options.Completion,
        _completion,
        examples=('eval "$(patchcast completion bash)"', "patchcast completion zsh > ~/.patchcast-completion"),
    ),
}

COMMAND_GROUPS = {
    "begin": ("demo", "doctor", "data", "models"),
    "train": ("pretrain", "finetune"),
    "measure and look": ("probe", "compare", "report", "show", "sample", "complete", "check"),
    "use": ("predict", "search", "embed", "export", "push"),
    "in the shell": ("completion",),
}
"""The commands in the order of the help, under their titles."""

HELP = """\
usage: patchcast COMMAND [options]

Generative self-supervised pretraining of vision transformers.

{commands}

patchcast COMMAND --help lists the options. To begin:

  patchcast demo
  patchcast pretrain --method auto --model vit_tiny_patch16_224 --data FOLDER \\
      --out runs/first
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 on success, 1 if a check failed, 2 for an error that the user can fix."""
    if arguments is None:  # as a program, and not called from a test or a notebook
        arguments = sys.argv[1:]
        speak_plainly()
        if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":  # other processes of a run say nothing
            show_stages()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may not be able to print names of files
    if not arguments or arguments[0] in ("-h", "--help"):
        titles = [
            "\n".join([f"{title}:", *(f"  {name:10} {COMMANDS[name].description}" for name in names)])
            for title, names in COMMAND_GROUPS.items()
        ]
        print(HELP.format(commands="\n\n".join(titles)), end="")
        return 0
    if arguments[0] == "--version":
        print(f"patchcast {__version__}")
        return 0
    name, *words = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        return _fail(f"there is no command {name!r}; {hint}")
    from patchcast.arguments import HelpRequestedError

    try:
        given = READERS[name](words) if name in READERS else _read(name, words)
        return COMMANDS[name].run(given) or 0
    except HelpRequestedError:
        print(_help(name), end="")
        return 0
    except ValueError as problem:
        if os.environ.get("PATCHCAST_TRACEBACK"):
            raise
        return _fail(str(problem))
    except BrokenPipeError:  # `patchcast models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, RuntimeError) as problem:
        sentence = lack_of_memory(problem)
        if not sentence or os.environ.get("PATCHCAST_TRACEBACK"):
            raise
        return _fail(sentence)
    except InterruptedError as end:
        return _fail(str(end), code=143)
    except OSError as problem:
        from patchcast.files import full_disk

        sentence = full_disk(problem)
        name = problem.filename if problem.filename2 is None else problem.filename2  # of two, the one to write
        if not sentence and name is not None:  # a folder in place of a file, a file without permission, ...
            sentence = f"{os.fsdecode(name)}: {problem.strerror or type(problem).__name__}"
            if isinstance(problem, IsADirectoryError):
                sentence += "; move that folder away"
            elif isinstance(problem, (FileExistsError, NotADirectoryError)):
                sentence += ": a file is where a folder is needed; choose another path"
        if not sentence or os.environ.get("PATCHCAST_TRACEBACK"):
            raise
        return _fail(sentence)
    except KeyboardInterrupt as end:
        return _fail(
            str(end) or "stopped; if this was a run, the same command resumes it from the last checkpoint", code=130
        )


def lack_of_memory(problem: BaseException) -> str:
    """One sentence if an error is a lack of memory; empty if not.

    >>> lack_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    "out of memory: can't allocate memory: you tried to allocate 9 bytes; a smaller batch, image or model needs less"
    """
    text = " ".join(str(problem).split()).replace("[enforce fail at alloc_cpu.cpp", "").split("Error code")[0]
    if not isinstance(problem, MemoryError) and "allocate memory" not in text and "out of memory" not in text:
        return ""
    reason = text.partition("DefaultCPUAllocator: ")[2] or text
    return f"out of memory: {reason.strip(' .') or 'no more is left'}; a smaller batch, image or model needs less"


def read_probe(words: Sequence[str]) -> ProbeCommand:
    """The words after `patchcast probe`: which protocol, and its options.

    >>> read_probe(["runs/first", "--dense", "collages"]).chosen
    DenseOptions(dense='collages')
    >>> read_probe(["runs/first", "--dense", "collages", "--draws", "5"])
    Traceback (most recent call last):
        ...
    patchcast.arguments.UsageError: --dense does not use --draws, which is an option of the features protocol

    Raises:
        UsageError: if two protocols are chosen, or an option belongs to another protocol than the chosen one.
    """
    from patchcast.arguments import UsageError, fields_of, parse

    fields = {name: fields_of(one) for name, one in options.PROBES.items()}
    typed = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    chosen = [name for name in fields if name in typed]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} are different protocols; choose one")
    protocol = chosen[0] if chosen else "features"
    shown = f"--{protocol}" if chosen else "the features protocol"
    owners: dict[str, list[str]] = {}
    for name, options_of in fields.items():
        for option in options_of:
            owners.setdefault(option, []).append(name)
    elsewhere = {
        option: f"{shown} does not use --{option}, which is an option of the {_and(names)}"
        for option, names in owners.items()
        if option not in fields[protocol]
    }
    common, of_protocol = parse("probe", words, [options.ProbeOptions, options.PROBES[protocol]], elsewhere=elsewhere)
    return ProbeCommand(
        common=common, protocol=protocol, chosen=of_protocol, typed=shlex.join(["patchcast", "probe", *words])
    )


def read_pretrain(words: Sequence[str]) -> PretrainCommand:
    """The words after `patchcast pretrain`. A dry run is no option of a recipe: neither --config nor --print_config
    has it.

    >>> read_pretrain(["--method", "mae", "--model", "m", "--data", "d", "--out", "o", "--dry-run"]).dry_run
    True

    Raises:
        UsageError: if an option is unknown, missing or wrong.
    """
    yes, no = {"--dry_run", "--dry-run"}, {"--no_dry_run", "--no-dry-run"}
    kept = [word for word in words if word not in yes | no]
    return PretrainCommand(recipe=_read("pretrain", kept), dry_run=bool(yes & {*words}))


READERS: dict[str, Callable[[Sequence[str]], Any]] = {"probe": read_probe, "pretrain": read_pretrain}


def _and(protocols: Sequence[str]) -> str:
    *others, last = protocols
    return f"{', '.join(others)} and {last} protocols" if others else f"{last} protocol"


def _read(name: str, words: Sequence[str]) -> Any:
    from patchcast.arguments import parse

    command = COMMANDS[name]
    if name == "pretrain":
        words = _completed(words)
    [given] = parse(name, words, [command.options], from_file=command.from_file)
    return given


def _completed(words: Sequence[str]) -> list[str]:
    """The words after `patchcast pretrain`, with what they leave to a run folder or to the weights to start from.

    `--out RUN` alone resumes or continues the run with its own config; `--start WORDS` goes without `--model`.
    """
    from pathlib import Path

    typed = {
        word[2:].partition("=")[0].replace("-", "_"): place for place, word in enumerate(words) if word[:2] == "--"
    }
    if "config" in typed:
        return list(words)
    if "out" in typed and not {"method", "data", "overwrite"} & typed.keys():
        place = typed["out"]
        out = words[place].partition("=")[2] or "".join(words[place + 1 : place + 2])
        config = Path(out) / CONFIG
        if config.is_file():
            again = ["--steps", "null"] if "epochs" in typed and "steps" not in typed else []  # the config's win else
            return ["--config", str(config), *words, *again]
    return [*words, "--model="] if "start" in typed and "model" not in typed else list(words)


def _help(name: str) -> str:
    from patchcast.arguments import fields_of, help_text

    command = COMMANDS[name]
    fields = fields_of(command.options)
    if name == "pretrain":
        fields |= fields_of(options.PretrainOptions)
    named = {name for names in command.groups.values() for name in names}
    groups = {
        "run" if command.from_file else "options": [field for field in fields.values() if field.name not in named]
    }
    groups |= {title: [fields[name] for name in names] for title, names in command.groups.items()}
    for protocol, one in options.PROBES.items() if name == "probe" else ():
        description = (one.__doc__ or "").partition("\n")[0].rstrip(".")
        # In the help, the option that chooses a protocol is optional: without it, another protocol is chosen.
        of_protocol = [
            replace(field, default=None) if field.is_required else field for field in fields_of(one).values()
        ]
        groups[description if protocol == "features" else f"instead: {description}"] = of_protocol
    examples = "".join(f"  {line}\n" for line in command.examples)
    shown = help_text(name, command.description, groups, from_file=command.from_file)
    return f"{shown}\nexamples:\n{examples}" if examples else shown


def _fail(sentence: str, code: int = 2) -> int:
    print(f"patchcast: {visible(sentence)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
