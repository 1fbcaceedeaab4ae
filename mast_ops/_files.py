"""Files that are written whole, all of them or none."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path


def write_all(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Writes each file beside its place, and moves them there when all are written.

    Args:
        files: What writes the file, called with a path of the same name in a folder of its own.

    Raises:
        Exception: What a writer or the file system raised. Every file is then as it was.
    """
    with ExitStack() as stack:
        beside = {}
        for path, write in files.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=path.parent, prefix=".")))
            beside[path] = folder / path.name
            write(beside[path])
        placed: list[Path] = []
        try:
            for path, new in beside.items():
                if path.exists():
                    shutil.copy2(path, new.with_name(f"{path.name}.before"))
                new.replace(path)
                placed.append(path)
        except BaseException:
            for path in placed:
                before = beside[path].with_name(f"{path.name}.before")
                if before.exists():
                    before.replace(path)
                else:
                    path.unlink()
            raise
