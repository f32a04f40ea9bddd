# SPDX-License-Identifier: Apache-2.0
"""What a training run tells: `log.csv`, an image, and TensorBoard's files if asked for."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditn.imaging import contact_sheet
from ditn.imaging.resize import bicubic
from ditn.training.data import PairedImages
from ditn.training.trainer import Trainer

_SAMPLES = 3


class Log:
    """`log.csv`, continued. Rows after `step` go: a run that was killed may have logged more than it saved.

    With `tensorboard`, a folder of that name beside it gets the same numbers and the images; RuntimeError if the
    package is not installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        path, rows = folder / "log.csv", []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]
        self._board = _board(folder / "tensorboard", step) if tensorboard else None
        self._began = time.monotonic() - (float(rows[-1][-1]) if rows else 0)
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerows([["step", "lr", "loss", "psnr_y", "seconds"], *rows])
        self._file.flush()

    def write(self, step: int, rate: float, loss: float, psnr: float) -> None:
        """The rate of the last step, the mean loss since the row before, PSNR-Y in dB (or NaN)."""
        seconds = time.monotonic() - self._began
        self._writer.writerow([step, f"{rate:.3g}", f"{loss:.5f}", f"{psnr:.3f}", f"{seconds:.0f}"])
        self._file.flush()
        if self._board:
            for name, value in (("lr", rate), ("loss", loss), ("psnr_y", psnr)):
                self._board.add_scalar(name, value, step)

    def image(self, step: int, image: Image.Image) -> None:
        if self._board:
            self._board.add_image("samples", np.asarray(image), step, dataformats="HWC")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeError("--tensorboard needs the package: pip install 'ditn-kernels[train]'") from error
    return SummaryWriter(folder, purge_step=step + 1)


def samples(trainer: Trainer, images: PairedImages) -> Image.Image:
    """The first held-out images beside what bicubic interpolation and the averaged weights make of them."""
    rows = []
    for number, (high, low) in zip(range(_SAMPLES), images, strict=False):
        by_bicubic = bicubic(low, *high.shape[:2])
        rows.append(contact_sheet.row(str(number), high, {"bicubic": by_bicubic, "ours": trainer.enlarge(low)}))
    return contact_sheet.stack(rows)
