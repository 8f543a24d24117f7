"""A log of images that a run could not read, written by all of its processes."""

from __future__ import annotations

from pathlib import Path

from patchcast.files import write_text


class Journal:
    """A text file with a line for each image that cannot be read: its name, a tab, and why.

    Workers and ranks append to it; each line is one write, so that lines are never mixed.
    Several processes, and a resumed run, may write the same image: it counts once.

    >>> import tempfile
    >>> journal = Journal(Path(tempfile.mkdtemp()) / "bad-images.txt")
    >>> for name, reason in [("b.jpg", "truncated"), ("a.jpg", "empty"), ("b.jpg", "truncated")]:
    ...     journal.add(name, reason)
    >>> journal.close()
    {'a.jpg': 'empty', 'b.jpg': 'truncated'}
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, name: str, reason: str) -> None:
        """Append an image; ignored before the folder exists: the process that creates it finds the same images."""
        if self.file.parent.is_dir():
            with self.file.open("a", encoding="utf-8", errors="surrogateescape") as out:
                out.write(" ".join(name.split()) + "\t" + " ".join(reason.split()) + "\n")

    def close(self) -> dict[str, str]:
        """Sort the file and remove duplicates; returns the reason for each image by name."""
        if not self.file.exists():
            return {}
        lines = self.file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        found = dict(sorted((name, reason) for name, _, reason in (line.partition("\t") for line in lines)))
        text = "".join(f"{name}\t{reason}\n" for name, reason in found.items())
        write_text(self.file, text)
        return found
