"""Command lines from dataclasses, by jsonargparse, with short error messages and plain help.

Arguments are first normalized to one form with one value per option, so that users may type

    --image_size 96 128    --image_size 96    --image_size [96,128]    lists and sizes
    --flip    --no_flip    --flip true    --flip false                 yes and no
    --method MAE    --batch-size 64    --batch_size=64                 case, dashes

jsonargparse then checks the values against the types and reads `--config`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import operator
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from patchcast.options import OPTION_RANGES
from patchcast.ranges import check_ranges

Options = TypeVar("Options")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CONFIG_HELP = "a YAML recipe, or the config.yaml of a run; options given as well take precedence."
BOOLEANS = "--NAME turns an option on and --no_NAME turns it off."
WORDS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}


class UsageError(ValueError):
    """An invalid command line; the message is one sentence."""


class HelpRequestedError(Exception):
    """`--help` was given."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One option or positional argument of a dataclass.

    Attributes:
        type: its type, without None.
        is_optional: whether it may be None.
        metavar: of a positional argument; empty for an option.
        owner: name of the dataclass.
        names: the values that it takes, where they are not a part of its type.
    """

    name: str
    type: Any
    is_optional: bool
    default: Any
    metavar: str
    help: str
    owner: str
    names: tuple[str, ...] = ()

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def is_flag(self) -> bool:
        return self.type is bool

    @property
    def is_many(self) -> bool:
        return get_origin(self.type) in (list, tuple)

    @property
    def numbers(self) -> bool:
        """Whether its values are numbers only, so that the end of a list is clear."""
        return self.is_many and set(get_args(self.type)) <= {int, float, Ellipsis}

    @property
    def choices(self) -> list[str]:
        """The values that it takes, if they can be listed."""
        if self.names:
            return list(self.names)
        return [str(value) for value in get_args(self.type)] if get_origin(self.type) is Literal else []

    @property
    def wants(self) -> str:
        """A description of the values that it takes."""
        if get_origin(self.type) is Literal:
            return f"one of {', '.join(map(str, get_args(self.type)))}"
        if get_origin(self.type) is tuple and Ellipsis not in get_args(self.type):
            kinds = get_args(self.type)
            one_for_all = ", or one that stands for both" if kinds == (int, int) else ""
            return f"{len(kinds)} {'whole ' if int in kinds else ''}numbers{one_for_all}"
        if self.is_many:
            kind = get_args(self.type)[0]
            return {int: "whole numbers", float: "numbers"}.get(kind, "one or more words")
        if get_origin(self.type) in (Union, types.UnionType):
            number, words = get_args(self.type)
            return f"a {'whole ' if number is int else ''}number or {' or '.join(get_args(words))}"
        plain = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "a word"}
        return plain.get(self.type, 'options in JSON, such as {"key": 1}')

    @property
    def placeholder(self) -> str:
        """The placeholder of its value in the help."""
        if self.metavar:
            return self.metavar
        if get_origin(self.type) is Literal:
            return "{" + ",".join(map(str, get_args(self.type))) + "}"
        plain = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
        if self.is_many:
            kinds = [kind for kind in get_args(self.type) if kind is not Ellipsis]
            names = [plain.get(kind, "TEXT") for kind in kinds]
            return " ".join(names) if get_origin(self.type) is tuple and len(names) > 1 else f"{names[0]} ..."
        if get_origin(self.type) in (Union, types.UnionType):
            return "N"
        return plain.get(self.type, "JSON")


def fields_of(options: type) -> dict[str, Field]:
    """The options of a dataclass by name, in order, with the help texts of its docstring.

    >>> from patchcast.options import Demo
    >>> fields_of(Demo)["out"].help
    'a new run folder.'
    """
    from docstring_parser import parse

    hints = get_type_hints(options)
    help_of = {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for cls in reversed(options.__mro__)
        if cls is not object
        for parameter in parse(cls.__doc__ or "").params
    }
    found = {}
    for field in dataclasses.fields(options):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        metavar = field.metadata.get("metavar", "")
        kind = _without_none(hints[field.name])
        names = field.metadata.get(
            "names", ()
        )  # written from the table that lists them, so that it cannot be out of date
        text = f"{', '.join(names[:-1])} or {names[-1]}." if names else help_of.get(field.name, "")
        is_optional = kind is not hints[field.name]
        found[field.name] = Field(field.name, kind, is_optional, default, metavar, text, options.__name__, tuple(names))
    return found


def parse(
    command: str,
    words: Sequence[str],
    options: Sequence[type],
    *,
    from_file: bool = False,
    elsewhere: Mapping[str, str] | None = None,
) -> list[Any]:
    """Parse the arguments of a command into one instance of each dataclass.

    Args:
        from_file: also take `--config FILE.yaml` and `--print_config`.
        elsewhere: options of other uses of the command, by name, with the error message for each.
    Raises:
        UsageError: if the arguments are invalid.
        HelpRequestedError: if help is requested.
    """
    fields = _fields(options)
    words = normalize(command, words, fields, from_file=from_file, elsewhere=elsewhere or {})
    parser = _parser(command, {"": fields.values()}, from_file)
    try:
        values = parser.parse_args(words).as_dict()
    except Exception as problem:  # ArgumentError, and TypeError or KeyError of broken files
        raise UsageError(_sentence(command, str(problem), words, fields)) from None
    given = [one(**{field.name: values[field.name] for field in dataclasses.fields(one)}) for one in options]
    if not from_file:  # a recipe checks itself
        for one in given:
            ranges = {name: option_range for name, option_range in OPTION_RANGES.items() if name in vars(one)}
            check_ranges(vars(one), ranges, prefix="--")
    return given


def normalize(
    command: str,
    words: Sequence[str],
    fields: Mapping[str, Field],
    *,
    from_file: bool = False,
    elsewhere: Mapping[str, str] = types.MappingProxyType({}),
) -> list[str]:
    """Normalize arguments to one `--name=value` per option, with positional arguments last.

    >>> from patchcast.options import ProbeOptions
    >>> normalize("probe", ["--untrained", "run", "--limit", "5"], fields_of(ProbeOptions))
    ['--untrained=true', '--limit=5', 'run']
    """
    given: dict[str, list[str]] = {}
    positional: list[str] = []
    after_flag: dict[int, str] = {}  # places in `positional` of words that follow a flag
    flag = ""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            raise HelpRequestedError
        if not word.startswith("--") or word == "--":
            if word.startswith("-") and len(word) > 1 and word != "--" and not NUMBER.fullmatch(word):
                raise UsageError(f"{command} has no option {word}; options begin with two dashes")
            if flag and word != "--":
                after_flag[len(positional)] = flag
            flag = ""
            positional += rest if word == "--" else [word]
            rest = [] if word == "--" else rest
            continue
        flag = ""
        typed, has_value, value = word[2:].partition("=")
        stem, *inner = typed.split(".")
        stem = stem.replace("-", "_")
        field = fields.get(stem)
        if from_file and stem in ("config", "print_config"):
            if stem == "config" and not has_value:
                value = _next(rest, "--config", "a file")
            given[stem] = [value]
        elif field is not None and not field.metavar and inner:
            name = ".".join([stem, *inner])
            given[name] = [value if has_value else _next(rest, f"--{name}", "a value")]
        elif field is not None and not field.metavar:
            if field.is_flag:
                follows = bool(rest) and rest[0].lower() in WORDS
                value = value if has_value else rest.pop(0) if follows else "true"
                given[stem] = [WORDS.get(value.lower(), value)]
                flag = "" if has_value or follows else stem
            else:
                before = given.get(stem, []) if get_origin(field.type) is list else []
                values = [value] if has_value else [_next(rest, f"--{stem}", field.wants)]
                while field.is_many and not has_value and rest and _continues(rest[0], values, field):
                    values.append(rest.pop(0))
                given[stem] = [*before, *values]
        elif stem.startswith("no_") and stem[3:] in fields and fields[stem[3:]].is_flag and not has_value:
            given[stem[3:]] = ["false"]
        else:
            raise UsageError(_unknown(command, stem, fields, from_file, elsewhere))
    places = [field for field in fields.values() if field.metavar]
    if len(positional) > len(places) and not any(field.is_many for field in places):
        surplus = positional[len(places)]
        if flag := after_flag.get(len(places), ""):
            raise UsageError(f"--{flag} takes {fields[flag].wants}; got {surplus!r}")
        raise UsageError(f"{command} does not take the argument {surplus!r}")
    options = [_joined(name, values, fields) for name, values in given.items()]
    return [*options, *(["--"] if any(word.startswith("-") for word in positional) else []), *positional]


def help_text(command: str, description: str, groups: Mapping[str, Sequence[Field]], *, from_file: bool = False) -> str:
    """The help of a command: options in groups, with plain defaults and without Python types."""
    return str(_parser(command, groups, from_file, description=description).format_help())


def words_of(given: Any) -> Iterator[tuple[str, list[str]]]:
    """The arguments that reproduce an instance of a dataclass: all options that are not the default.

    >>> from patchcast.recipe import Recipe
    >>> dict(words_of(Recipe("mae", "test_vit", "my photos", Path("runs/a"), flip=True, image_size=(96, 128))))["flip"]
    ['--flip']
    >>> [words] = [words for name, words in words_of(Recipe("mae", "m", "d", Path("o"), image_size=(96, 128)))][4:]
    >>> words
    ['--image_size', '96', '128']
    """
    for name, field in fields_of(type(given)).items():
        value = getattr(given, name)
        if value is None or value == field.default:
            continue
        if field.is_flag:
            yield name, [f"--{name}" if value else f"--no_{name}"]
        elif field.is_many:
            yield name, [f"--{name}", *map(str, value)]
        else:
            yield name, [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]


# ---- the parts -------------------------------------------------------------------------------------------------------


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else functools.reduce(operator.or_, kinds)
    return hint


def _parser(
    command: str, groups: Mapping[str, Iterable[Field]], from_file: bool, description: str | None = None
) -> Any:
    import shutil

    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    fields = {field.name: field for group in groups.values() for field in group}
    flags = {name for name, field in fields.items() if field.is_flag}
    places = " ".join(_place(field) for field in fields.values() if field.metavar)

    class Formatter(DefaultHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=28, width=min(100, shutil.get_terminal_size((100, 24)).columns))

        def _get_help_string(self, action: Any) -> str:
            return str(action.help)  # with its plain default, without the type

        def _format_action_invocation(self, action: Any) -> str:
            if action.dest in flags:
                return f"--{action.dest}, --no_{action.dest}"
            return " ".join([*action.option_strings[:1], *([action.metavar] if action.metavar else [])])

    parser = ArgumentParser(
        prog=f"patchcast {command}",
        usage=f"patchcast {command} {places + ' ' if places else ''}[options]",
        description=description,
        epilog=None if description is None else BOOLEANS,
        exit_on_error=False,
        add_help=False,
        formatter_class=Formatter,
    )
    for title, group in groups.items():
        added = parser.add_argument_group(title)
        for field in group:
            if fields.pop(field.name, None) is not None:  # several protocols of `probe` share an option
                _add(added, field)
    if from_file:
        parser.add_argument("--config", action="config", metavar="PATH", help=CONFIG_HELP)
        [printing] = [action for action in parser._actions if action.dest == "print_config"]
        printing.help = "print the options as a YAML recipe, and stop."
    return parser


def _add(group: Any, field: Field) -> None:
    given: dict[str, Any] = {"help": field.help + _default(field), "metavar": field.placeholder}
    if not field.is_required:
        given["default"] = field.default
    if not field.metavar:
        kind = field.type | None if field.is_optional else field.type
        group.add_argument(f"--{field.name}", type=kind, required=field.is_required, **given)
    elif field.is_many:
        many = "+" if field.is_required else "*"
        group.add_argument(field.name, type=get_args(field.type)[0], nargs=many, **given)
    else:
        group.add_argument(field.name, type=field.type, **given, **({} if field.is_required else {"nargs": "?"}))


def _fields(options: Sequence[type]) -> dict[str, Field]:
    return {name: field for one in options for name, field in fields_of(one).items()}


def _next(rest: list[str], option: str, wants: str) -> str:
    if not rest or rest[0].startswith("--"):
        raise UsageError(f"{option} takes {wants}; nothing follows it")
    return rest.pop(0)


def _continues(word: str, values: Sequence[str], field: Field) -> bool:
    """Whether an argument is a further value of an option that takes several."""
    if word.startswith("--") or values[0].startswith("["):
        return False
    return not field.numbers or bool(NUMBER.fullmatch(word))


def _joined(name: str, values: Sequence[str], fields: Mapping[str, Field]) -> str:
    field = fields.get(name)
    if field is None:  # config, print_config, or a part of a dictionary
        return f"--{name}={values[0]}" if values[0] or name != "print_config" else f"--{name}"
    value = values[0]
    if field.is_many and not (len(values) == 1 and value.startswith("[")) and values != ["null"]:
        if field.type == tuple[int, int] and len(values) == 1:
            values = [value, value]
        value = f"[{', '.join(values)}]" if field.numbers else json.dumps(list(values))
    if get_origin(field.type) is Literal:
        lower = {str(choice).lower(): str(choice) for choice in get_args(field.type)}
        value = lower.get(value.lower(), value)
    return f"--{name}={value}"


def _unknown(
    command: str, name: str, fields: Mapping[str, Field], from_file: bool, elsewhere: Mapping[str, str]
) -> str:
    if name in elsewhere or name.removeprefix("no_") in elsewhere:
        return elsewhere.get(name) or elsewhere[name.removeprefix("no_")]
    known = [field.name for field in fields.values() if not field.metavar]
    known += [f"no_{each.name}" for each in fields.values() if each.is_flag]
    known += ["config", "print_config"] if from_file else []
    near = difflib.get_close_matches(name, [*known, *elsewhere], n=1)
    hint = f"did you mean --{near[0]}?" if near else f"`patchcast {command} --help` lists them"
    return f"{command} has no option --{name}; {hint}"


def _sentence(command: str, problem: str, words: Sequence[str], fields: Mapping[str, Field]) -> str:
    """Convert jsonargparse's message to one sentence."""
    if missing := re.search(r"arguments are required: (.*)", problem):
        names = [fields[name] for name in missing[1].split(", ")]
        return f"{command} needs {', '.join(field.metavar or f'--{field.name}' for field in names)}"
    if surplus := re.search(r"unrecognized arguments: (\S+)", problem):
        return f"{command} does not take the argument {surplus[1]!r}"
    found = re.search(r"""(?:[Kk]ey|[Oo]ption|argument) ["']?(?:--)?([\w.]+)""", problem)
    name = found[1] if found else ""
    field = fields.get(name.split(".")[0])
    if field is None:
        if name == "config" or "config" in problem.partition("\n")[0].lower():
            file = next((word.partition("=")[2] for word in words if word.startswith("--config=")), "")
            if file and not Path(file).is_file():
                return f"there is no file {file} (--config)"
            return f"--config {file} is no recipe: {' '.join(problem.split())}"
        if name:
            return _unknown(command, name, fields, True, {})
        return f"{command}: {' '.join(problem.split())}"
    typed = [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
    given = re.search(r"(?:Given value|Got value): (.*)", problem, re.DOTALL)
    value = typed[0] if typed else " ".join(given[1].split()) if given else ""
    shown = field.metavar or f"--{name}"
    hint = ""
    if get_origin(field.type) is Literal:
        near = difflib.get_close_matches(value.lower(), list(map(str, get_args(field.type))), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"{shown} takes {field.wants}; got {value!r}{hint}"


def _place(field: Field) -> str:
    shown = f"{field.metavar} ..." if field.is_many else field.metavar
    return shown if field.is_required else f"[{shown}]"


def _default(field: Field) -> str:
    if field.is_required:
        return "" if field.metavar or "may be left out" in field.help else " Required."
    says_nothing = field.default is None or field.default is False or field.default in ({}, [])
    if says_nothing or "Default:" in field.help or field.metavar:
        return ""
    if field.default is True:
        return " Default: on."
    shown = " ".join(map(str, field.default)) if field.is_many else str(field.default).removesuffix(".0")
    return f" Default: {shown}."
