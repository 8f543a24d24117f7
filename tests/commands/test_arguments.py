"""How options are read: what may be typed, what help shows, and what each mistake is answered with."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from patchcast import options
from patchcast.arguments import UsageError, fields_of, normalize, parse, words_of
from patchcast.cli import COMMANDS, main, read_probe
from patchcast.evaluation.protocols import PROTOCOLS
from patchcast.recipe import Recipe

RECIPE = ["--method", "mae", "--model", "test_vit", "--data", "digits", "--out", "run"]


def recipe(*words: str) -> Recipe:
    [found] = parse("pretrain", [*RECIPE, *words], [Recipe], from_file=True)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence that a mistake is answered with, without 'patchcast: '."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, f"one sentence, on one line, and no usage: {captured.err}"
    return captured.err.removeprefix("patchcast: ").strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--image_size", "96", "128"], (96, 128)),
        (["--image_size", "96"], (96, 96)),
        (["--image_size=96"], (96, 96)),
        (["--image_size", "[96,128]"], (96, 128)),
        (["--image-size", "[96, 128]"], (96, 128)),
        ([], None),
    ],
)
def test_sizes(words: list[str], expected: tuple[int, int] | None) -> None:
    assert recipe(*words).image_size == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--flip"], True), (["--no_flip"], False), (["--flip", "true"], True), (["--flip=false"], False),
        (["--flip", "no"], False), (["--no-flip"], False), ([], None), (["--flip", "--no_flip"], False),
    ],
)  # fmt: skip
def test_booleans(words: list[str], expected: bool | None) -> None:
    assert recipe(*words).flip is expected


def test_other_values() -> None:
    found = recipe(
        *("--mean", "0.5", ".5", "1e-1", "--lr", "1e-3", "--method_args", '{"mask_ratio": 0.5}', "--steps", "7"),
        *("--method_args.decoder_depth", "2", "--crop_scale", "[0.2, 1]", "--precision", "BF16", "--steps", "8"),
    )
    assert found.mean == (0.5, 0.5, 0.1)
    assert found.lr == 1e-3
    assert found.method_args == {"mask_ratio": 0.5, "decoder_depth": 2}
    assert found.crop_scale == (0.2, 1.0)
    assert found.precision == "bf16"
    assert found.steps == 8, "the last one counts"


def test_positional_arguments_and_lists_in_any_order() -> None:
    fields = fields_of(options.Compare)
    words = normalize("compare", ["--per_class", "5", "20", "a", "b", "--no_supervised", "--out", "x.parquet"], fields)
    assert words == ["--per_class=[5, 20]", "--supervised=false", "--out=x.parquet", "a", "b"]
    [found] = parse("compare", words, [options.Compare])
    assert (found.runs, found.out) == ([Path("a"), Path("b")], Path("x.parquet"))
    [repeated] = parse("data", ["check", "digits", "--split", "a", "--split", "b"], [options.Data])
    assert repeated.split == ["a", "b"]
    [after] = parse("show", ["run", "--", "--strange.png"], [options.Show])
    assert after.images == [Path("--strange.png")]


def test_a_file_of_options_and_what_is_given_as_well(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("method: mae\nmodel: test_vit\ndata: digits\nout: run\nepochs: 5\nimage_size: [96, 128]\n")
    [found] = parse("pretrain", ["--config", str(file), "--epochs", "3"], [Recipe], from_file=True)
    assert (found.method, found.epochs, found.image_size) == ("mae", 3.0, (96, 128))
    file.write_text("method: mae\nmodle: test_vit\n")
    with pytest.raises(UsageError, match="no option --modle; did you mean --model"):
        parse("pretrain", ["--config", str(file)], [Recipe], from_file=True)
    with pytest.raises(UsageError, match=r"there is no file nothing \(--config\)"):
        parse("pretrain", ["--config", "nothing"], [Recipe], from_file=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretrain", "--stps", "3"], "pretrain has no option --stps; did you mean --steps?"),
        (["pretrain", *RECIPE, "--steps", "abc"], "--steps takes a whole number; got 'abc'"),
        (["pretrain", *RECIPE, "--steps", "1.5"], "--steps takes a whole number; got '1.5'"),
        (["pretrain", *RECIPE, "--steps"], "--steps takes a whole number; nothing follows it"),
        (["pretrain", *RECIPE, "--lr", "fast"], "--lr takes a number; got 'fast'"),
        (["pretrain", *RECIPE, "--flip=maybe"], "--flip takes true or false; got 'maybe'"),
        (["pretrain", *RECIPE, "--flip", "maybe"], "--flip takes true or false; got 'maybe'"),
        (["pretrain", *RECIPE, "--flip", "true", "more"], "pretrain does not take the argument 'more'"),
        (["probe", "test_vit", "--untrained", "maybe"], "--untrained takes true or false; got 'maybe'"),
        (["pretrain", *RECIPE, "--precision", "fp3"], "--precision takes one of auto, fp32, bf16; got 'fp3'"),
        (
            ["pretrain", *RECIPE, "--image_size", "1", "2", "3"],
            "--image_size takes 2 whole numbers, or one that stands for both; got '[1, 2, 3]'",
        ),
        (["pretrain", *RECIPE, "--crop_scale", "0.2"], "--crop_scale takes 2 numbers; got '[0.2]'"),
        (["pretrain", *RECIPE, "--method_args", "x=1"], "--method_args takes options in JSON, such as"),
        (["pretrain", "--method", "mae"], "pretrain needs --model, --data, --out"),
        (["pretrain", *RECIPE, "more"], "pretrain does not take the argument 'more'"),
        (["pretrain", *RECIPE, "-x"], "pretrain has no option -x; options begin with two dashes"),
        (["pretrain", *RECIPE, "--method", "mea"], "no method is called 'mea'; did you mean mae?"),
        (["pretrain", *RECIPE, "--model", "test_vot"], "timm has no model 'test_vot'; did you mean"),
        (["pretrain", *RECIPE, "--data", "/not/there"], "/not/there is not there; --data takes a folder of images"),
        (["probe"], "probe needs RUN_OR_MODEL"),
        (["probe", "runs/nothing"], "there is no folder runs/nothing; give the folder of a run"),
        (["probe", "test_vit", "--dense", "colages"], "--dense takes one of masks, collages; got 'colages'"),
        (["probe", "test_vit", "--layers", "all", "--finetune", "3"], "--layers and --finetune are different"),
        (["probe", "test_vit", "--drws", "3"], "probe has no option --drws; did you mean --draws?"),
        (["compare", "--out", "x.parquet"], "compare needs RUN"),
        (["embed", "test_vit", "--data", "digits"], "embed needs --out"),
        (["show", "nothing"], "there is no folder nothing; give the folder of a run"),
        (["data", "chek", "digits"], "ACTION takes one of check; got 'chek'; did you mean check?"),
        (["models", "--method", "simim"], "no method is called 'simim'; did you mean simmim?"),
        (["shwo"], "there is no command 'shwo'; did you mean show?"),
    ],
)  # fmt: skip
def test_mistakes(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *words).startswith(sentence)


@pytest.mark.parametrize("protocol", [name for name in options.PROBES if name != "features"])
def test_a_protocol_refuses_the_options_of_others(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = {"layers": "all", "attentive": "last", "dense": "collages", "finetune": "3"}[protocol]
    own = fields_of(options.PROBES[protocol])
    for name, other in options.PROBES.items():
        for option, field in fields_of(other).items():
            if option not in own and not field.is_required:
                value = [f"--no_{option}"] if field.is_flag else [f"--{option}", "1"]
                said = refused(capsys, "probe", "test_vit", f"--{protocol}", chosen, *value)
                assert said.startswith(f"--{protocol} does not use --{option}, which is an option of the"), (name, said)


def test_the_protocols_and_their_options() -> None:
    assert list(PROTOCOLS) == list(options.PROBES)
    assert [protocol.file for protocol in PROTOCOLS.values()] == ["probe", "layers", "attentive", "dense", "finetune"]
    found = read_probe(["run", "--layers", "0", "3", "--limit", "5", "--no_cache"])
    assert (found.protocol, found.chosen, found.common.limit) == (
        "layers",
        options.Layers(layers=["0", "3"], cache=False),
        5,
    )
    assert found.typed == "patchcast probe run --layers 0 3 --limit 5 --no_cache"
    assert read_probe(["run"]).chosen == options.FeatureOptions()


def test_what_was_typed_can_be_typed_again() -> None:
    found = recipe("--flip", "--no_pictures", "--image_size", "96", "128", "--mean", "0.5", "0.25", "0.5")
    found = dataclasses.replace(found, method_args={"mask_ratio": 0.5}, wandb="a b", lr=1e-05, out=Path("some where"))
    words = [word for _, typed in words_of(found) for word in typed]
    assert "--flip" in words
    assert "--no_pictures" in words
    [again] = parse("pretrain", words, [Recipe])
    assert again == found


def test_methods_by_any_spelling() -> None:
    from patchcast.early_checks import check_recipe

    for typed in ("MAE", "mae", "Mae"):
        found = recipe("--method", typed)
        check_recipe(found)
        assert found.method == "mae"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_plain(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: patchcast {command} ")
    for strange in ("type:", "default:", "null", "None", "Union", "<class", "Optional", "{}"):
        assert strange not in shown, strange
    every = [COMMANDS[command].options, *(options.PROBES.values() if command == "probe" else ())]
    for one in every:
        for field in fields_of(one).values():
            assert field.help, f"{field.name} of {command} has no help"
            assert (field.metavar or f"--{field.name}") in shown
            takes_default = not field.is_required and field.default not in (None, False, {}, []) and not field.metavar
            assert not takes_default or "Default: " in shown


def test_every_option_has_a_group() -> None:
    named = [name for names in COMMANDS["pretrain"].groups.values() for name in names]
    assert len(named) == len(set(named))
    assert set(named) <= {field.name for field in dataclasses.fields(Recipe)}


def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    """All in one process, which stays light to the end."""
    every = [
        ["probe", "--help"], ["pretrain", "--help"], ["pretrain", *RECIPE, "--method", "mea"],
        ["pretrain", *RECIPE, "--model", "test_vot"], ["pretrain", *RECIPE, "--stps", "3"], ["probe", "runs/nothing"],
        ["export", "nothing", "--out", "x"], ["pretrain", *RECIPE, "--data", "/not/there"],
    ]  # fmt: skip
    script = f"""
import sys
import patchcast.cli as cli
for words in {every}:
    cli.main(words)
    assert not {{'torch', 'timm'}} & {{*sys.modules}}, words
"""
    subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
