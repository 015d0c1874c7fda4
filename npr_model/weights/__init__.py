"""The bundled checkpoints, each a file that is named after it.
Loads nothing else, so that the command line can name the default.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT = "wild-2"  # the checkpoint of all commands, unless told otherwise
FOLDER = Path(__file__).parent


def path(name: str) -> Path:
    """Return where the checkpoint of this name lies. It need not be there."""
    return FOLDER / f"{name}.safetensors"


def available() -> list[str]:
    """Return the names of the bundled checkpoints, in the order of the alphabet."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))
