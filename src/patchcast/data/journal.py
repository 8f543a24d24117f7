"""The images that a run could not read, written down by all of its processes."""

from __future__ import annotations

from pathlib import Path

from patchcast.files import write_text


class Journal:
    """A text file with a line for each image that cannot be read: its name, a tab, and why.

    Workers and ranks add to it as they find them; each line is one write to the end of the file, so that none is torn.
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
        """Write one down; nothing before the folder is there: the process that makes it finds the same."""
        if self.file.parent.is_dir():
            with self.file.open("a", encoding="utf-8", errors="surrogateescape") as out:
                out.write(" ".join(name.split()) + "\t" + " ".join(reason.split()) + "\n")

    def close(self) -> dict[str, str]:
        """Leave each image once in the file, in the order of names; names, and why each could not be read."""
        if not self.file.exists():
            return {}
        lines = self.file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        found = dict(sorted((name, reason) for name, _, reason in (line.partition("\t") for line in lines)))
        text = "".join(f"{name}\t{reason}\n" for name, reason in found.items())
        write_text(self.file, text)
        return found
