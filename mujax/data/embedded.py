"""Text in pieces of a SentencePiece vocabulary that is trained on that text at first use."""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from glob import escape
from pathlib import Path

import sentencepiece

from mujax.data.prepare.dataset import Recipe, prepare
from mujax.data.shards import DESCRIPTION, FORMAT
from mujax.data.text import find_files
from mujax.errors import UserError


def cache_folder() -> Path:
    """Returns MUJAX_CACHE, or mujax in the system's folder for caches."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mujax"
    return Path(os.environ.get("MUJAX_CACHE") or default)


def load_pieces(name: str, path: str, glob: str, vocab_size: int) -> Path:
    """Returns the folder of a packed dataset of this text with so many pieces, made at first use.

    It is found again by what it was made from.

    Raises:
      UserError: see mujax.data.prepare.dataset.
    """
    root, files = find_files(name, path, glob)
    digest = hashlib.sha256(f"{FORMAT} {vocab_size} {sentencepiece.__version__}".encode())
    try:
        for file in files:
            digest.update(
                b"%s %d " % (file.relative_to(root).as_posix().encode(), file.stat().st_size)
            )
            digest.update(file.read_bytes())
    except OSError as e:
        raise UserError(f"{e.filename} cannot be read: {e.strerror}") from e
    folder = cache_folder() / f"pieces-{vocab_size}-{digest.hexdigest()[:12]}"
    if (folder / DESCRIPTION).exists():
        return folder
    print(
        f"training {vocab_size} SentencePiece pieces on {path or 'the embedded text'}, once",
        file=sys.stderr,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The first process to finish counts; others that make the same dataset discard theirs.
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as e:
        raise UserError(
            f"{folder.parent} cannot be written ({e.strerror}); set MUJAX_CACHE to another folder"
        ) from e
    try:
        is_file = len(files) == 1 and Path(path).expanduser().is_file()
        pattern = escape(str(files[0])) if is_file else f"{escape(str(root))}/{glob}"
        source = "embedded" if name == "embedded" else f"text:{pattern}"
        prepare(Recipe(source, f"train:{vocab_size}", "packed"), temporary, is_quiet=True)
        with contextlib.suppress(FileExistsError, OSError):
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
