# SPDX-License-Identifier: Apache-2.0
"""What `ditn upscale film.mp4` spends its time on: decoding, the network, encoding; and whether they run side by side.

    python -m benchmarks.video [--model ditn-real-x4] [--size 320x180] [--frames 24] [--rounds 3] [--json FILE]

The film is a photograph over which the camera moves. Each part is run by itself on the same frames, with all that
belongs to it: decoding with the way to RGB, encoding with the way back. Parts and whole take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ditn
from benchmarks.harness import outputs
from benchmarks.harness.machine import machine
from benchmarks.harness.outputs import PROJECT, RESULTS
from ditn.imaging.arrays import Pixels
from ditn.video.encoding import choose, encoder
from ditn.video.film import probe
from ditn.video.layout import pyav
from ditn.video.stream import FrameUpscaler
from ditn.video.work import Work, begin, enlarge_segment, finish, segments

PARTS = ("decode", "network", "encode", "whole")


def film(path: Path, width: int, height: int, frames: int) -> Path:
    """A pan over examples/kitchen.jpg, as H.264."""
    av = pyav()
    with Image.open(PROJECT / "examples" / "kitchen.jpg") as image:
        wide = np.asarray(image.convert("RGB").resize((width + 2 * frames, height + frames)))
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(24), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            crop = wide[number : number + height, 2 * number : 2 * number + width]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(crop), "rgb24")))
        output.mux(stream.encode(None))
    return path


def measure(model: str, width: int, height: int, frames: int, rounds: int) -> dict[str, Any]:
    """Seconds of each part and of the whole, by the clock and by the processor, the least of the rounds."""
    upscaler = ditn.Upscaler(model)
    with tempfile.TemporaryDirectory() as folder:
        source = probe(film(Path(folder) / "film.mkv", width, height, frames))
        size = (width * upscaler.scale, height * upscaler.scale)
        encoding = choose(source, ".mkv", *size)
        plan = upscaler.plan(height, width)
        work = Work(source, Path(folder) / "large.mkv", size, plan, encoding)
        small = [pixels for _, pixels in source.frames(0, frames)]
        large: list[Pixels] = []

        def network() -> None:
            enlarge = FrameUpscaler(upscaler, plan, size)
            large[:] = [enlarge(pixels)[0] for pixels in small]

        def encode() -> None:
            with encoder(Path(folder) / "part.mkv", encoding) as add:
                for number, pixels in enumerate(large):
                    add(number, pixels)

        def whole() -> None:
            begin(work, {}, resume=False)
            for segment in segments(source):
                enlarge_segment(work, segment, upscaler)
            finish(work)

        runs: dict[str, Callable[[], object]] = {
            "decode": lambda: list(source.frames(0, frames)),
            "network": network,
            "encode": encode,
            "whole": whole,
        }
        network()  # which prepares the weights
        clock: dict[str, list[float]] = {part: [] for part in PARTS}
        processor: dict[str, list[float]] = {part: [] for part in PARTS}
        for _ in range(rounds):
            for part in PARTS:
                start, busy = time.perf_counter(), time.process_time()
                runs[part]()
                clock[part].append(time.perf_counter() - start)
                processor[part].append(time.process_time() - busy)
    return {
        "model": model,
        "size": [width, height],
        "frames": frames,
        "clock_s": {part: min(clock[part]) for part in PARTS},
        "processor_s": {part: min(processor[part]) for part in PARTS},
    }


def table(result: dict[str, Any]) -> str:
    """What of a run stands in docs/video.md."""
    width, height = result["size"]
    where = f"{result['model']}, {width}x{height}, {result['machine']['threads']} threads of {result['machine']['cpu']}"
    frames, parts = result["frames"], PARTS[:3]
    total = sum(result["processor_s"][part] for part in parts)
    lines = ["| part | frames/s alone | processor time a frame | share |", "|---|---|---|---|"]
    for part in PARTS:
        busy = result["processor_s"][part]
        share = f"{busy / total:.1%}" if part in parts else f"{busy / total:.1%} of the parts' sum"
        per_frame = f"{1000 * busy / frames:.1f} ms"
        lines.append(f"| {part} | {frames / result['clock_s'][part]:.2f} | {per_frame} | {share} |")
    return "\n".join([*lines, "", f"{where}, {result['machine']['date']}."])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ditn-real-x4")
    parser.add_argument("--size", default="320x180", metavar="WIDTHxHEIGHT")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=outputs.file, default=RESULTS / "video.json", metavar="FILE")
    args = parser.parse_args(arguments)
    width, height = map(int, args.size.split("x"))
    result = measure(args.model, width, height, args.frames, args.rounds)
    result["machine"] = machine()
    print(table(result))
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
