"""The command line. Nothing heavy is imported before a command is known and its options are right."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from patchcast import __version__


def _pretrain(arguments: Sequence[str]) -> None:
    """pretrain a vision transformer on unlabelled images"""
    from jsonargparse import ArgumentParser

    from patchcast.recipe import Recipe

    parser = ArgumentParser(prog="patchcast pretrain", description=(Recipe.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="a YAML recipe, or the config.yaml of a run")
    parser.add_class_arguments(Recipe, as_group=False)
    options = parser.parse_args(list(arguments))
    configs = options.pop("config") or []
    values = options.as_dict()
    for config in configs:
        earlier = Recipe.fill_from_earlier(Path(config.absolute))
        values |= {name: value for name, value in earlier.items() if values[name] is None}
    recipe = Recipe(**values)
    recipe.check()

    from patchcast.commands.pretrain import pretrain

    pretrain(recipe)


def _probe(arguments: Sequence[str]) -> None:
    """measure what a run or a timm model has learnt, with labels"""
    parser = _parser("probe", _probe)
    parser.add_argument("source", metavar="RUN_OR_MODEL", help="a run folder, or a timm model by name")
    parser.add_argument("--data", help="labelled images; default: the run's own data")
    parser.add_argument("--per_class", type=int, nargs="*", default=[5, 10, 20], help="labels per class; %(default)s")
    parser.add_argument("--draws", type=int, default=20, help="random draws of the labelled images; %(default)s")
    parser.add_argument("--limit", type=int, help="use at most so many training images")
    parser.add_argument("--lidar", type=int, default=0, metavar="VIEWS", help="also LiDAR, of so many augmented views")
    parser.add_argument("--untrained", action="store_true", help="the network before training: random weights")
    _add_device(parser)
    parser.add_argument("--no_cache", action="store_true", help="neither keep features nor take kept ones")
    parser.add_argument("--out", type=Path, help="a JSON file; default: in the run folder, and none for a timm model")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--layers", nargs="+", help="instead, linear probes of these layers, or of all")
    instead.add_argument(
        "--attentive",
        choices=["last", "best"],
        help="instead, AIM's attentive probe of the last six blocks or the best",
    )
    instead.add_argument(
        "--dense",
        choices=["masks", "collages"],
        help="instead, what each unit knows: on images with masks or boxes, or on collages of labelled images",
    )
    instead.add_argument("--finetune", type=int, metavar="EPOCHS", help="instead, train all weights for so many epochs")
    options = parser.parse_args(arguments)
    common = {name: getattr(options, name) for name in ("data", "limit", "untrained", "device", "out")}
    common["typed"] = shlex.join(["patchcast", "probe", *arguments])
    cached = not options.no_cache

    if options.attentive:
        from patchcast.commands.attentive import probe_attentively

        probe_attentively(options.source, options.attentive, cached=cached, **common)
    elif options.layers:
        from patchcast.commands.layers import probe_by_layer

        probe_by_layer(options.source, options.layers, cached=cached, **common)
    elif options.dense:
        from patchcast.commands.dense import probe_densely

        probe_densely(options.source, options.dense, **common)
    elif options.finetune is not None:
        from patchcast.commands.finetune import probe_by_finetuning

        probe_by_finetuning(options.source, options.finetune, **common)
    else:
        from patchcast.commands.probe import probe

        probe(
            options.source,
            per_class=options.per_class,
            draws=options.draws,
            views=options.lidar,
            cached=cached,
            **common,
        )


def _compare(arguments: Sequence[str]) -> None:
    """one table of runs, the untrained network, a supervised run and raw pixels"""
    parser = _parser("compare", _compare)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--data", help="labelled images; default: each run's own data")
    parser.add_argument("--out", type=Path, required=True, help="a file.parquet, of all that was found")
    parser.add_argument("--per_class", type=int, nargs="*", default=[5, 20], help="labels per class; %(default)s")
    parser.add_argument("--draws", type=int, default=20, help="random draws of the labelled images; %(default)s")
    parser.add_argument("--limit", type=int, help="use at most so many training images")
    parser.add_argument("--no_supervised", action="store_true", help="no supervised run, which takes as long as a run")
    _add_device(parser)
    parser.add_argument("--no_cache", action="store_true", help="neither keep features nor take kept ones")
    options = parser.parse_args(arguments)

    from patchcast.commands.compare import compare

    compare(
        options.runs,
        data=options.data,
        out=options.out,
        per_class=options.per_class,
        draws=options.draws,
        limit=options.limit,
        supervised=not options.no_supervised,
        device=options.device,
        cached=not options.no_cache,
    )


def _report(arguments: Sequence[str]) -> None:
    """write all that is known of a run as one HTML file"""
    parser = _parser("report", _report)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--data", help="images to show; default: the run's own data")
    parser.add_argument("--out", type=Path, help="the file; default: report.html in the run folder")
    options = parser.parse_args(arguments)

    from patchcast.commands.report import report

    report(options.run, data=options.data, out=options.out)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto", help="%(default)s")


def _show(arguments: Sequence[str]) -> None:
    """draw what a run predicts for images"""
    parser = _parser("show", _show)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("images", type=Path, nargs="*", help="image files; default: the first of the run's data")
    parser.add_argument("--count", type=int, default=8, help="images of the run's data; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what is hidden; %(default)s")
    parser.add_argument("--out", type=Path, help="the picture; default: show.png in the run folder")
    options = parser.parse_args(arguments)

    from patchcast.commands.show import show

    show(options.run, options.images, count=options.count, seed=options.seed, out=options.out)


def _embed(arguments: Sequence[str]) -> None:
    """write features of a folder of images to parquet or safetensors"""
    parser = _parser("embed", _embed)
    parser.add_argument("model", help="a run folder, or a timm model by name")
    parser.add_argument("--data", required=True, help="a folder of images, parquet files, or digits")
    parser.add_argument("--out", type=Path, required=True, help="a new file.parquet or file.safetensors")
    parser.add_argument(
        "--features", choices=["pooled", "tokens", "maps"], default="pooled", help="of each image; %(default)s"
    )
    parser.add_argument("--split", default="train", help="of the data, if it has several; %(default)s")
    parser.add_argument("--tile_size", type=int, help="cut images into tiles of so many pixels a side, each by itself")
    parser.add_argument("--max_tiles", type=int, default=6, help="tiles of one image, with --tile_size; %(default)s")
    parser.add_argument("--batch_size", type=int, default=16, help="images at a time; %(default)s")
    parser.add_argument("--untrained", action="store_true", help="a timm model with random weights")
    options = parser.parse_args(arguments)

    from patchcast.commands.embed import embed

    embed(
        options.model,
        data=options.data,
        out=options.out,
        kind=options.features,
        split=options.split,
        tile_size=options.tile_size,
        max_tiles=options.max_tiles,
        batch_size=options.batch_size,
        untrained=options.untrained,
    )


def _sample(arguments: Sequence[str]) -> None:
    """draw images with a run's ImageGPT"""
    parser = _parser("sample", _sample)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--count", type=int, default=64, help="images; %(default)s")
    _add_drawing(parser)
    parser.add_argument("--out", type=Path, help="the PNG, beside which a GIF will lie; default: RUN/samples.png")
    options = parser.parse_args(arguments)

    from patchcast.commands.sample import draw_samples

    draw_samples(**vars(options))


def _complete(arguments: Sequence[str]) -> None:
    """have a run's ImageGPT, or AIM on raw pixels, go on from the beginning of images"""
    parser = _parser("complete", _complete)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("images", type=Path, nargs="*", help="image files; default: the first of the run's data")
    parser.add_argument("--count", type=int, default=8, help="images of the run's data; %(default)s")
    parser.add_argument("--prefix", type=int, help="units that are kept, in their order; default: half of the image")
    parser.add_argument("--copies", type=int, default=4, help="completions of each image by an ImageGPT; %(default)s")
    _add_drawing(parser)
    parser.add_argument("--out", type=Path, help="the PNG, beside which a GIF will lie; default: RUN/completions.png")
    options = parser.parse_args(arguments)

    from patchcast.commands.complete import draw_completions

    draw_completions(**vars(options))


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits; %(default)s")
    parser.add_argument("--top_k", type=int, help="draw from the so many likeliest codes only")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest codes of this probability together")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument("--batch_size", type=int, default=64, help="images drawn at once; %(default)s")


def _export(arguments: Sequence[str]) -> None:
    """write a run's encoder for timm, transformers, ONNX or torch.export"""
    parser = _parser("export", _export)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the weights and their README.md")
    _add_format(parser)
    options = parser.parse_args(arguments)

    from patchcast.commands.export import export

    export(options.run, options.out, to=options.to)


def _push(arguments: Sequence[str]) -> None:
    """put a run's encoder on the Hugging Face hub"""
    parser = _parser("push", _push)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("repo", metavar="USER/NAME", help="the repository, which is made if it is not there")
    _add_format(parser)
    parser.add_argument("--private", action="store_true", help="a repository that only you can read")
    options = parser.parse_args(arguments)

    from patchcast.commands.push import push

    push(options.run, options.repo, to=options.to, private=options.private)


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        choices=["timm", "transformers", "onnx", "torch"],
        help="the format; transformers for MAE and ImageGPT only; default: timm, of an ImageGPT transformers",
    )


def _check(arguments: Sequence[str]) -> int:
    """test a run or a recipe for leaks of the answer"""
    parser = _parser("check", _check)
    parser.add_argument("source", type=Path, help="a run folder, or a recipe in YAML")
    parser.add_argument("--out", type=Path, help="the picture; default: check.png, in the run folder if it is one")
    options = parser.parse_args(arguments)

    from patchcast.commands.check import check

    return 0 if check(options.source, out=options.out) else 1


def _data(arguments: Sequence[str]) -> int:
    """check a source of images: counts, sizes, labels, files that cannot be read"""
    parser = _parser("data", _data)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="read a source once and say what is in it", description=_data.__doc__)
    check.add_argument("source", help="as --data of pretrain: a folder, parquet or tar files, hf:NAME, digits")
    check.add_argument("--split", action="append", dest="splits", help="only this one; may be given several times")
    check.add_argument("--limit", type=int, help="read at most so many images of each split, evenly spaced")
    check.add_argument("--workers", type=int, help="processes; default: one for each core, where there is much to read")
    check.add_argument("--out", type=Path, help="also write all that was found to this JSON file")
    options = parser.parse_args(arguments)

    from patchcast.commands.data import check_data

    return 0 if check_data(**vars(options)) else 1


def _models(arguments: Sequence[str]) -> None:
    """list the models that there are, and what can be done with them"""
    parser = _parser("models", _models)
    parser.add_argument("pattern", nargs="?", default="*", help="part of a name, or a pattern with * and ?")
    parser.add_argument("--method", help="only those that this method can be run on")
    options = parser.parse_args(arguments)

    from patchcast.commands.models import models

    models(options.pattern, options.method)


def _demo(arguments: Sequence[str]) -> None:
    """pretrain on handwritten digits in two minutes, and show what was learnt"""
    parser = _parser("demo", _demo)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="a new run folder; %(default)s")
    options = parser.parse_args(arguments)

    from patchcast.commands.demo import demo

    demo(options.out)


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "pretrain": _pretrain,
    "probe": _probe,
    "compare": _compare,
    "report": _report,
    "show": _show,
    "embed": _embed,
    "sample": _sample,
    "complete": _complete,
    "export": _export,
    "push": _push,
    "check": _check,
    "data": _data,
    "models": _models,
    "demo": _demo,
}

HELP = """\
usage: patchcast COMMAND [options]

Generative self-supervised pretraining of vision transformers.

{commands}

patchcast COMMAND --help tells the options. To begin:

  patchcast demo
  patchcast pretrain --method mae --model vit_tiny_patch16_224 --data FOLDER_OF_IMAGES --out runs/first
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 1 if a check failed, 2 with one sentence if the user can put it right."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:9} {run.__doc__}" for name, run in COMMANDS.items())), end="")
        return 0
    if arguments[0] == "--version":
        print(f"patchcast {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        return _fail(f"no command is called {arguments[0]!r}; {hint}")
    try:
        return COMMANDS[arguments[0]](arguments[1:]) or 0
    except ValueError as problem:
        if os.environ.get("PATCHCAST_TRACEBACK"):
            raise
        return _fail(str(problem))
    except BrokenPipeError:  # `patchcast models | head` has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InterruptedError as end:
        return _fail(str(end), code=143)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from the last checkpoint, if it is a run", code=130)


def _parser(name: str, run: Callable[[Sequence[str]], int | None]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"patchcast {name}", description=run.__doc__)


def _fail(sentence: str, code: int = 2) -> int:
    print(f"patchcast: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
