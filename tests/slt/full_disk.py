"""A disk that is full halfway through a file."""

from pathlib import Path


def fill_disk(monkeypatch):
    """Let every file written in one piece end in half of it and an error."""
    write = Path.write_bytes

    def full(self, content):
        write(self, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
