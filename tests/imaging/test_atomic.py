# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditn.commands.cli import main
from ditn.imaging.atomic import atomic_write


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert (temporary.parent, temporary.suffix, temporary.name[0]) == (tmp_path, ".txt", ".")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_it_leaves_nothing(tmp_path, error: type[BaseException]) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["a" * 251 + ".txt", "写" * 85, "a." + "b" * 253, os.fsdecode(b"caf\xe9.txt")])
def test_every_name_that_a_folder_can_hold(tmp_path, name: str) -> None:
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == [name]


def test_permissions_are_those_of_a_new_file(tmp_path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "a"):
        pass
    assert stat.filemode((tmp_path / "a").stat().st_mode) == stat.filemode((tmp_path / "plain").stat().st_mode)


def test_a_pipe_is_written_into_and_stays_one(tmp_path) -> None:
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    with atomic_write(path) as temporary:
        temporary.write_text("through")
    reader.join(10)
    assert read == ["through"]
    assert path.is_fifo()
    with atomic_write(Path("/dev/null")) as temporary:
        temporary.write_text("gone")
    assert Path("/dev/null").is_char_device()


def test_where_nothing_can_be_written(tmp_path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"cannot write into .*nowhere: No such file"),
        atomic_write(tmp_path / "nowhere" / "a"),
    ):
        pass
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path):
        pass


def test_the_folder_that_may_not_be_written_is_named(tmp_path, weights, capsys, monkeypatch) -> None:
    """By a file system that says no: the superuser, whom tests may run as, is never refused."""
    (tmp_path / "ro").mkdir()
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.png")
    opened = os.open

    def refuse(path: str | Path, flags: int, *mode: int, **options: int) -> int:
        if flags & os.O_RDWR and str(path).startswith(str(tmp_path / "ro")):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert main(["upscale", str(tmp_path / "a.png"), "-o", f"{tmp_path / 'ro'}/", "--model", str(weights)]) == 1
    assert f"a.png: [Errno 13] cannot write into {tmp_path / 'ro'}: Permission denied" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "ro")
