"""What MkDocs does not by itself: links that work in the repository work in the site as well.

Pages link to files outside docs/ as the repository has them (`../recipes/slurm.sh`). For the site those files are
copied into its folder `repository/`, and the links point there. The changelog and the notes on speed are pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\((?:\.\./)+([^)#\s]+)")
PAGES = {"CHANGELOG.md": "changes.md", "benchmarks/NOTES.md": "speed.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside docs/, where it is there; what is not, MkDocs complains of."""
    for page in list(files.documentation_pages()):
        for path in OUTSIDE.findall(page.content_string):
            if (ROOT / path).is_file() and path not in PAGES and files.get_file_from_path(_in_site(path)) is None:
                files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    up = "../" * page.file.src_uri.count("/")

    def moved(link: re.Match[str]) -> str:
        path = link[1]
        return f"]({up}{_in_site(path)}" if (ROOT / path).is_file() else link[0]

    return OUTSIDE.sub(moved, markdown)


def _in_site(path: str) -> str:
    return PAGES.get(path, f"repository/{path}")
