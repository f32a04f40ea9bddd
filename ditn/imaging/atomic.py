# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# What lies here is an open stream, whatever it leads to: `/dev/stdout` may well be a regular file.
_STREAMS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """The name of a new, empty file to be written in the block. At its end the file becomes `path`; if an exception
    ends the block, KeyboardInterrupt included, it is removed and `path` is as before.

    The temporary name is short, for `path` may have the longest name there can be; in the same folder, so that renaming
    copies nothing; hidden; and of the same suffix, by which many libraries choose the format. Where `path` is a pipe or
    a device, the finished file is copied into it. Raises OSError where nothing can be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    stream = path.exists() and (not path.is_file() or path.parent in _STREAMS)
    folder = Path(tempfile.gettempdir()) if stream else path.parent
    temporary = folder / f".ditn-{os.urandom(8).hex()}{path.suffix[:16]}"
    try:
        try:  # not `tempfile`, whose files are for their owner alone and would stay so
            temporary.touch(exist_ok=False)
        except OSError as error:
            raise _refused(path.parent, error) from error
        yield temporary
        if stream:
            with temporary.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def nameless_file(folder: Path) -> IO[bytes]:
    """A new file in a folder, of which nothing is left whatever ends the process. Raises OSError where nothing can be
    written there."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:  # which names a file that nobody knows
        raise _refused(folder, error) from error


def _refused(folder: Path, error: OSError) -> OSError:
    return OSError(error.errno, f"cannot write into {folder}: {error.strerror}")
