# SPDX-License-Identifier: Apache-2.0
"""What each command takes, and what of it cannot be followed. Nothing here imports torch, so that help and an answer to
wrong usage cost no more than Python itself."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from ditn.export.options import FORMAT_SUMMARIES, OPSETS
from ditn.inference.options import AUTO, GUARDS
from ditn.model.variants import DEFAULT_WEIGHTS
from ditn.training.recipe import DEGRADATIONS, add_recipe_arguments

# Of weights, images and results, as torch calls them.
DTYPES = ("float32", "float16", "bfloat16")
# What `ditn evaluate` takes for a model besides weights: an interpolation, and everything.
BICUBIC, ALL = "bicubic", "all"


def upscale(parser: argparse.ArgumentParser) -> None:
    from ditn.imaging.files import (
        MAX_PIXELS,
        QUALITY,
        SUFFIXES,
    )  # and numpy, which the other commands' answers need not wait for

    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        type=_name,
        metavar="INPUT",
        help="images, folders or glob patterns, or - for standard input; or films, animations, frames/%%06d.png",
    )
    add(
        "-o",
        "--output",
        required=True,
        type=_name,
        help="an image for one input, else a folder; - for standard output; or a film (.mkv, .mp4, .mov, .webm), an "
        "animation, or frames/%%06d.png",
    )
    add(
        "--model",
        type=_name,
        default=AUTO,
        help="a shipped model (see `ditn info`), a file of weights, or auto: for each image the one for clean "
        "images or the one for photographs, as its pixels suggest (%(default)s)",
    )
    add("--flavor", choices=("official", "neosr"), help="whose weights a file holds, where the file does not say")
    add("--scale", type=float, help="any factor: the model's, then Lanczos resampling (default: the model's; 4)")
    add("--recursive", action="store_true", help="folders with all their sub-folders, laid out alike in OUTPUT")
    add(
        "--format",
        choices=[suffix[1:] for suffix in SUFFIXES],
        help="of the output (default: OUTPUT's or the input's; png from standard input)",
    )
    add("--suffix", default="", help="added to each output's name, before the dot")
    add("--quality", type=int, help=f"of JPEG and WebP, 1 to 100 (default: {QUALITY}; a lossless WebP stays lossless)")
    add(
        "--guard",
        choices=GUARDS,
        default="repair",
        help="what becomes of places where the network's output has nothing to do with the image: repair takes them "
        "from an interpolation and says so, warn only says so, off does not look (%(default)s)",
    )
    add("--self-ensemble", action="store_true", help="mean over eight flips and rotations: 8 times the time")
    add("--tile", type=_tile, default="auto", help="side in input pixels, 0 for none, or auto (%(default)s)")
    add(
        "--max-memory",
        type=parse_bytes,
        metavar="BYTES",
        help="for the network, such as 800M or 2G (default: half of what is free)",
    )
    add("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger inputs, which may be forged (%(default)s)")
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    add("--dtype", choices=(*DTYPES, "float64"), help="(default: float16 on a GPU, float32 on a CPU)")
    add(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        help="replay an image's or a tile's launches once its shape has come twice (default: on a CUDA GPU)",
    )
    add("--backend", help="force a backend (default: the fastest that can run; see `ditn info`)")
    add(
        "--rows-above",
        type=int,
        default=MAX_PIXELS,
        metavar="PIXELS",
        help="larger images are read, shared out and written to TIFF by rows of tiles, never whole (%(default)s)",
    )
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="share the work out on a Ray cluster (default: this machine's, or one for this run)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--skip-existing", action="store_true", help="leave outputs that exist as they are")
    existing.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--json", type=_path, metavar="REPORT", help="write a report of every image")
    _films(parser.add_argument_group("films and animations", "see docs/video.md").add_argument)


def _films(add: Callable[..., object]) -> None:
    add("--codec", help="h264, hevc, vp9, av1, ffv1, prores, or h264_nvenc and the like (default: by OUTPUT and depth)")
    add(
        "--crf",
        type=int,
        metavar="N",
        help="quality in the codec's own measure, less is better, 0 loses nothing but in av1 (default: 16 to 26)",
    )
    add("--pix-fmt", metavar="FORMAT", help="such as yuv420p10le (default: the input's depth and chroma)")
    add("--rate", type=_rate, metavar="FPS", help="of numbered pictures as input: 25, 23.976 or 24000/1001")
    add("--time", type=_span, metavar="A-B", help="only this part, such as 10:00-12:30, 1:02:03.5- or 0-90 (seconds)")
    add("--reuse", action="store_true", help="do not compute again what stands still: the same result, to the bit")
    add("--resume", action="store_true", help="go on with a run that was ended, at its last whole segment")


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that contradict each other or that nothing could be done with."""
    if args.command != "upscale":
        return
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise ValueError(f"--quality is {args.quality}, must be 1 to 100")
    if args.scale is not None and not 0 < args.scale < math.inf:
        raise ValueError(f"--scale is {args.scale}, must be a positive number")
    if args.flavor and args.model == AUTO:
        raise ValueError("--flavor says whose weights a file holds; name that file with --model")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: {args.json.parent} is no folder")


def export(parser: argparse.ArgumentParser) -> None:
    formats = "; ".join(f"{name}: {summary}" for name, summary in FORMAT_SUMMARIES.items())
    parser.add_argument("model", type=_name, help="a shipped model or a file")
    parser.add_argument("-o", "--output", type=_path, required=True, metavar="FILE")
    parser.add_argument("--format", choices=FORMAT_SUMMARIES, help=f"{formats} (default: by the suffix of FILE)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights, image and result (%(default)s)")
    parser.add_argument("--uint8", action="store_true", help="take and give uint8 [B, H, W, C]")
    parser.add_argument("--opset", type=int, default=OPSETS[0], help="of ONNX (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where a .pt2 is to run (%(default)s)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the file with the float64 reference")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--device", help="where to look (default: a GPU if there is one)")


def verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=_name, default=DEFAULT_WEIGHTS, help="a shipped model or a file (%(default)s)")
    parser.add_argument("--device", help="where to run (default: a GPU if there is one)")


def warmup(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        type=_name,
        default=DEFAULT_WEIGHTS,
        help="a shipped model (see `ditn info`) or a file of weights (%(default)s)",
    )
    add("--dtype", nargs="+", choices=DTYPES, help="(default: float16 on a GPU, float32 on a CPU)")
    add("--size", nargs="+", type=_size, default=[(960, 540)], metavar="WIDTHxHEIGHT", help="(default: 960x540)")
    add("--training", action="store_true", help="also what training needs")
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")


def train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=_path, help="a TOML file with any of the recipe's names")
    parser.add_argument("--data", nargs="+", required=True, type=_name, help="folders of images, or images")
    parser.add_argument("--output", required=True, type=_path, help="the run's folder")
    parser.add_argument("--cache", type=_path, help="where decoded images are kept (default: the run's folder)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument(
        "--time-limit", type=float, default=math.inf, metavar="MINUTES", help="save and stop after this"
    )
    parser.add_argument("--save-every", type=float, default=5, metavar="MINUTES", help="checkpoint timer (%(default)s)")
    parser.add_argument("--report-every", type=int, default=500, metavar="STEPS", help="validate and log (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that make batches; 0 leaves it to the trainer (%(default)s)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files, too")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True, help="train on fused operators")
    parser.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a CUDA GPU, replay a step's launches after the first few steps",
    )
    add_recipe_arguments(parser)


def evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        type=_name,
        help=f'a shipped model\'s name, a file, "{BICUBIC}", or "{ALL}": every shipped model and {BICUBIC}; '
        "may be repeated, for a table of the means",
    )
    parser.add_argument("--data", action="append", required=True, type=_path, metavar="FOLDER", help="may be repeated")
    parser.add_argument(
        "--scale",
        type=int,
        choices=(2, 3, 4),
        help=f"default: the model's; 4 for bicubic; with {ALL}, those of this scale",
    )
    parser.add_argument("--self-ensemble", action="store_true", help="mean over 8 flips and rotations")
    parser.add_argument(
        "--degradation",
        choices=DEGRADATIONS,
        default="bicubic",
        help="jpeg, photo: ignore LR_bicubic; HR made smaller and saved, or blurred and noisy as well (%(default)s)",
    )
    parser.add_argument("--json", type=_path, metavar="FILE", help="write the scores there")
    parser.add_argument("--csv", type=_path, metavar="FILE", help="write the scores there")
    parser.add_argument("--sheet", type=_path, metavar="FILE", help="write a PNG: bicubic, the model, the original")
    parser.add_argument(
        "--sheet-images", type=int, default=8, metavar="N", help="of each folder, on the sheet (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=(*DTYPES, "float64"), default="float32")
    parser.add_argument("--backend", help="force one backend of ditn_kernels")


def _name(text: str) -> str:
    """Not empty, as "$FILE" is where it was never set: to pathlib that is the folder one is in."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name, as of a variable that was never set")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


def parse_bytes(text: str) -> int:
    """ "2G", "800M", "1.5GiB" or a number of bytes; K, M, G, T are powers of 1024."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write 800M or 2G")
    return int(float(match[1]) * 1024 ** ("kmgt".find(match[2].lower()) + 1 if match[2] else 0))


def _tile(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of pixels")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 960x540")
    return int(match[1]), int(match[2])


def _rate(text: str) -> Fraction:
    """ "24000/1001" or a number; what is written for 24000 / 1001, 23.976, is taken for it."""
    try:
        rate = Fraction(text).limit_denominator(100_000)  # films have no finer ones
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; write 25 or 24000/1001") from None
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} frames per second, must be above 0 and at most 1000")
    exact = Fraction(round(rate * Fraction(1001, 1000)) * 1000, 1001)
    return exact if "." in text and abs(exact - rate) < Fraction(1, 500) else rate


def _span(text: str) -> tuple[float, float]:
    """Seconds from and to, of "10:00-12:30", "1:02:03.5-" or "-90"."""
    clock = r"(?:(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?))?"
    match = re.fullmatch(rf"{clock}-(?P<to>{clock})", text)
    if not match or text == "-":
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time; write 10:00-12:30, or 90-120 in seconds")

    numbers = [float(match[index] or 0) for index in (1, 2, 3, 5, 6, 7)]
    start, stop = (3600 * hours + 60 * minutes + seconds for hours, minutes, seconds in (numbers[:3], numbers[3:]))
    if match["to"] == "":
        stop = math.inf
    if start >= stop:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return start, stop
