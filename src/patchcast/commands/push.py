"""`patchcast push`: a run's encoder on the Hugging Face hub, with its card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from patchcast import __version__
from patchcast.commands.export import write_folder


def push(run: Path, repo: str, *, to: str | None = None, private: bool = False) -> None:
    """Export a run and upload it to a new repository, or as a new commit of an existing one.

    Raises:
        ValueError: if the name is invalid, the login is missing, the hub refuses or cannot be reached, or `private` is
            given for a public repository; nothing is uploaded then.
    """
    api = HfApi(library_name="patchcast", library_version=__version__)
    with _in_one_sentence(repo):
        validate_repo_id(repo)
        user = api.whoami()["name"]  # checked before the export, which may take minutes
    name = repo if "/" in repo else f"{user}/{repo}"
    with TemporaryDirectory() as folder:
        write_folder(run, Path(folder), to=to, where=f"hf-hub:{name}")
        with _in_one_sentence(name):
            api.create_repo(name, private=private or None, exist_ok=True)
            if private and not api.repo_info(name).private:
                raise ValueError(f"{name} exists already and is public; make it private first, or choose another name")
            done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export by patchcast")
    print(f"\nPushed to {done.commit_url}.\nChoose a license in its README.md: it names none yet.")


@contextlib.contextmanager
def _in_one_sentence(repo: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as problem:
        raise ValueError(
            f"{repo!r} is not the name of a repository on the Hugging Face hub; write USER/NAME"
        ) from problem
    except LocalTokenNotFoundError as problem:
        raise ValueError(
            "the Hugging Face hub does not know who you are: log in with `hf auth login`, or set HF_TOKEN"
        ) from problem
    except HfHubHTTPError as problem:
        raise ValueError(f"the Hugging Face hub refused {repo}: {_first_line(problem)}") from problem
    except (HTTPError, OSError) as problem:
        raise ValueError(
            f"the Hugging Face hub cannot be reached ({_first_line(problem)}); "
            "`patchcast export` writes the same folder, and `hf upload` uploads it later"
        ) from problem


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
