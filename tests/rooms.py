"""Which file may import which, which names stand twice, and whether docs/architecture.md has every file.

`python tests/rooms.py` is part of `make lint`.

Only the standard library: the files are parsed, not imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src"
MAP = ROOT.parent / "docs" / "architecture.md"

# From the bottom to the top: a file imports from its own layer and from those before it. The longest name counts.
LAYERS: list[list[str]] = [
    [
        "geometry",
        "files",
        "folder_files",
        "heap",
        "parts",
        "modes",
        "schedules",
        "ranges",
        "plain",
        "stages",
        "recipe",
        "options",
        "arguments",
        "backbones.capabilities",
        "backbones.precision",
    ],
    ["positions", "losses", "plans", "tokenizers.base", "backbones.key_values", "backbones.tile_geometry"],
    ["backbones"],
    ["data"],
    ["views", "targets"],
    ["predictors"],
    ["objectives"],
    ["pretrainer"],
    ["tokenizers"],
    ["methods"],
    ["honesty", "joint", "mim"],
    ["evaluation"],
    ["collapse", "drawing", "interop"],
    ["training"],
    ["report", "runs", "starts"],
    ["classification"],
    ["segmentation"],
    ["extraction", "comparison"],
    ["early_checks", "commands"],
    ["cli", "__main__"],
]

# What is left to do: each list gets shorter, and an entry that is no longer needed is a failure.
UPWARD: set[tuple[str, str]] = set()
FILES_TWICE: set[str] = set()
NAMES_TWICE: set[str] = set()


def modules() -> dict[str, Path]:
    """Every file of the package, by its name in it: `plans.orders`; a package's own file is `plans`."""
    names = {}
    for path in sorted((ROOT / "patchcast").rglob("*.py")):
        parts = path.relative_to(ROOT / "patchcast").with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's files that one imports, at the top or inside a function; not those for type checkers alone."""
    found = set()
    for node in _running(_parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "patchcast":
            base = node.module.partition(".")[2]
            for alias in node.names:
                inside = f"{base}.{alias.name}".strip(".")
                found.add(inside if inside in known else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "patchcast"}
    return found


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running(child)


def layer(module: str) -> int:
    """The place of a file's layer, counted from the bottom."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for place, names in enumerate(LAYERS):
            if ".".join(parts[:length]) in names:
                return place
    raise KeyError(f"{module} has no layer: give it one in tests/rooms.py")


def upward() -> set[tuple[str, str]]:
    """Imports of a file from a higher layer."""
    known = modules()
    return {
        (module, other)
        for module, path in known.items()
        if module
        for other in imports(path, known)
        if other and layer(other) > layer(module)
    }


def circles() -> list[list[str]]:
    """Groups of files that import one another, directly or not."""
    known = modules()
    graph = {module: imports(path, known) - {module, ""} for module, path in known.items() if module}
    reach = {module: _reachable(module, graph) for module in graph}
    groups = {frozenset(other for other in reach[module] if module in reach[other]) for module in graph}
    return sorted(sorted(group) for group in groups if group)


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    stack = [*graph[start]]
    while stack:
        module = stack.pop()
        if module not in seen:
            seen.add(module)
            stack.extend(graph.get(module, ()))
    return seen


def files_twice() -> dict[str, list[str]]:
    """File names that stand in two folders or more."""
    places = defaultdict(list)
    for module, path in modules().items():
        if path.name not in ("__init__.py", "__main__.py"):
            places[path.stem].append(module)
    return {name: where for name, where in places.items() if len(where) > 1}


def names_twice() -> dict[str, list[str]]:
    """Public functions, classes and constants that two files or more define."""
    places = defaultdict(list)
    for module, path in modules().items():
        for name in sorted(set(_defined(path))):
            if not name.startswith("_"):
                places[name].append(module)
    return {name: where for name, where in places.items() if len(where) > 1}


def _defined(path: Path) -> Iterator[str]:
    for node in _parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def off_the_map(page: str, files: Iterable[str]) -> list[str]:
    """Files that the map of a page lacks or has wrongly; of the backbones it names some only."""
    named: list[str] = []
    for line in page.partition("## The map")[2].splitlines():
        cells, room = line.split("|"), ""
        for name in re.findall(r"`([\w/*]+\.py)`", cells[2] if len(cells) > 2 else ""):
            room = name.rpartition("/")[0] or room
            named.append(name if "/" in name or not room else f"{room}/{name}")
    files = [file for file in files if not file.endswith("__main__.py")]
    wrong = [name for name in named if not any(fnmatch(file, name) for file in files)]
    plain = [file for file in files if not file.endswith("__init__.py") and not file.startswith("backbones/")]
    lacking = [file for file in plain if not any(fnmatch(file, name) for name in named)]
    lines = [f"the map has {name}, which is not there" for name in wrong]
    return [*lines, *(f"the map lacks {file}" for file in lacking)]


def problems() -> list[str]:
    """One line for each thing that is wrong."""
    above = upward()
    lines = [f"{module} imports {other}, which is in a higher layer" for module, other in sorted(above - UPWARD)]
    lines += [f"these files import one another: {', '.join(group)}" for group in circles()]
    twice, defined = files_twice(), names_twice()
    lines += [f"file name {name} stands twice: {', '.join(twice[name])}" for name in sorted(twice.keys() - FILES_TWICE)]
    lines += [f"{name} is defined in {', '.join(defined[name])}" for name in sorted(defined.keys() - NAMES_TWICE)]
    files = [path.relative_to(ROOT / "patchcast").as_posix() for path in modules().values()]
    lines += [f"{MAP.name}: {line}" for line in off_the_map(MAP.read_text(encoding="utf-8"), files)]
    done = [*(UPWARD - above), *(FILES_TWICE - twice.keys()), *(NAMES_TWICE - defined.keys())]
    return [*lines, *(f"{entry} is no problem any more: take it off its list in tests/rooms.py" for entry in done)]


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "rooms: no circle, no upward import, no new name twice, every file on the map")
    sys.exit(bool(found))
