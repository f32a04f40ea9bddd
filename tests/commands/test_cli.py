# SPDX-License-Identifier: Apache-2.0
"""The command line: folders, names, what happens to files that exist, to bad ones and on the way out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from PIL import Image

import ditn
from ditn.commands import pictures as command
from ditn.commands.arguments import parse_bytes
from ditn.commands.cli import main


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures at the top, one below, a text beside them."""
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    for name in ("a.png", "größe 写真.png", "sub/b.jpg"):
        Image.fromarray(np.full((6, 8, 3), 99, np.uint8)).save(source / name)
    (source / "notes.txt").write_text("not a picture")
    return source


def upscale(weights: str, *arguments: object) -> int:
    return main(["upscale", *map(str, arguments), "--model", weights])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_flat_and_recursive(folder, weights, tmp_path) -> None:
    assert upscale(weights, folder, "-o", tmp_path / "flat") == 0
    assert names(tmp_path / "flat") == ["a.png", "größe 写真.png"]
    assert upscale(weights, folder, "-o", tmp_path / "deep", "--recursive", "--suffix", "_x2", "--format", "webp") == 0
    assert names(tmp_path / "deep") == ["a_x2.webp", "größe 写真_x2.webp", "sub/b_x2.webp"]
    with Image.open(tmp_path / "flat" / "größe 写真.png") as result:
        assert result.size == (16, 12)


def test_a_walk_leaves_out_hidden_files_linked_folders_and_its_own_output(folder, weights) -> None:
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / "sub" / "loop").symlink_to(folder)
    for _ in range(2):
        assert upscale(weights, folder, "-o", folder / "out", "--recursive", "--overwrite") == 0
    assert names(folder / "out") == ["a.png", "größe 写真.png", "sub/b.jpg"]


def test_files_and_globs(folder, weights, tmp_path) -> None:
    assert upscale(weights, folder / "a.png", folder / "sub" / "*.jpg", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.png", "b.jpg"]


def test_existing_files_are_left_unless_asked(folder, weights, tmp_path, capsys) -> None:
    output = tmp_path / "a.png"
    output.write_text("mine")
    assert upscale(weights, folder / "a.png", "-o", output) == 1
    assert "use --overwrite or --skip-existing" in capsys.readouterr().err
    assert upscale(weights, folder / "a.png", "-o", output, "--skip-existing") == 0
    assert output.read_text() == "mine"
    assert upscale(weights, folder / "a.png", "-o", output, "--overwrite") == 0
    with Image.open(output) as result:
        assert result.size == (16, 12)


def test_a_picture_is_never_its_own_output(folder, weights, capsys) -> None:
    before = (folder / "a.png").read_bytes()
    assert upscale(weights, folder / "a.png", "-o", folder, "--overwrite") == 1
    assert "would overwrite itself" in capsys.readouterr().err
    assert (folder / "a.png").read_bytes() == before


def test_the_same_again_enlarges_no_enlargements(folder, weights, tmp_path) -> None:
    """Into the folder itself, with a suffix, what is missing is done: nothing, the second time."""
    report = tmp_path / "report.json"
    again = (folder, "-o", folder, "--suffix", "_x2", "--skip-existing", "--recursive", "--json", report)
    for _ in range(3):
        assert upscale(weights, *again) == 0
    pictures = ["a.png", "größe 写真.png", "sub/b.jpg"]
    larger = ["a_x2.png", "größe 写真_x2.png", "sub/b_x2.jpg"]
    assert names(folder) == sorted([*pictures, *larger, "notes.txt"])
    reasons = {one["input"]: one["reason"] for one in json.loads(report.read_text())["pictures"]}
    assert reasons[str(folder / "a_x2.png")] == f"is what {folder / 'a.png'} becomes"


def test_a_file_that_may_not_be_looked_at_ends_no_other(folder, weights, tmp_path, capsys, monkeypatch) -> None:
    """In a folder that may not be entered; imitated, since the superuser may enter all."""
    real = os.stat

    def refuse(path, *args, **kwargs):
        if str(path).endswith("locked.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, refuse)
    assert upscale(weights, folder / "locked.png", folder / "a.png", "-o", tmp_path / "out") == 1
    assert "locked.png: cannot be looked at: Permission denied" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["a.png"]


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe that closes")
def test_all_is_done_though_nobody_reads_what_is_told(folder, tmp_path) -> None:
    """As in `ditn upscale photos/ -o large/ | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ditn", "upscale", str(folder), "-o", str(tmp_path / "out"), "--scale", "2"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=PROJECT)
    os.close(write)
    assert result.returncode == 0, result.stderr
    assert names(tmp_path / "out") == ["a.png", "größe 写真.png"]


def test_two_inputs_for_one_output(folder, weights, tmp_path, capsys) -> None:
    Image.new("RGB", (4, 4)).save(folder / "a.bmp")
    assert upscale(weights, folder, "-o", tmp_path / "out", "--format", "png") == 1
    assert "as " + str(folder / "a.bmp") + " is already" in capsys.readouterr().err
    assert len(names(tmp_path / "out")) == 2


def test_bad_files_do_not_stop_a_folder(folder, weights, tmp_path, capsys) -> None:
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    whole = (folder / "sub" / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    report = tmp_path / "report.json"
    assert upscale(weights, folder, folder / "missing.png", "-o", tmp_path / "out", "--json", report) == 1
    errors = capsys.readouterr().err
    for name in ("empty.png: is empty", "text.jpg: is no image", "cut.jpg: ", "missing.png: does not exist"):
        assert name in errors
    assert names(tmp_path / "out") == ["a.png", "größe 写真.png"]
    pictures = {Path(entry["input"]).name: entry for entry in json.loads(report.read_text())["pictures"]}
    assert {name: entry["status"] for name, entry in pictures.items()} == {
        "a.png": "done",
        "größe 写真.png": "done",
        "empty.png": "failed",
        "text.jpg": "failed",
        "cut.jpg": "failed",
        "missing.png": "failed",
    }


def test_a_pipe_in_a_folder_is_not_waited_for(folder, weights, tmp_path, capsys) -> None:
    os.mkfifo(folder / "pipe.png")
    signal.alarm(60)  # which ends this process, should it wait
    assert upscale(weights, folder, "-o", tmp_path / "out") == 1
    assert upscale(weights, folder / "pipe.png", "-o", tmp_path / "one.png") == 1
    signal.alarm(0)
    assert capsys.readouterr().err.count("pipe.png: is a pipe or a device") == 2
    assert names(tmp_path / "out") == ["a.png", "größe 写真.png"]


@pytest.mark.parametrize("place", ["ditn.commands.jobs.page_count", "ditn.commands.pictures.read"])
def test_whatever_a_decoder_raises_ends_its_image_alone(folder, weights, tmp_path, capsys, monkeypatch, place) -> None:
    """Pillow, for one, raises a TypeError for a TIFF whose offset is a fraction."""
    module, name = place.rsplit(".", 1)
    real = getattr(sys.modules[module], name)

    def fragile(path: Path, **options: object):
        if path.name == "a.png":
            raise TypeError("'IFDRational' object cannot be interpreted as an integer")
        return real(path, **options)

    monkeypatch.setattr(place, fragile)
    assert upscale(weights, folder, "-o", tmp_path / "out") == 1
    assert "a.png: TypeError: 'IFDRational' object cannot be" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["größe 写真.png"]


def test_a_folder_that_cannot_be_listed(folder, weights, tmp_path, capsys, monkeypatch) -> None:
    """By a file system that says no: the superuser, whom tests may run as, is never refused."""
    listing = Path.iterdir

    def refuse(path: Path):
        if path.name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert upscale(weights, folder, "-o", tmp_path / "out", "--recursive") == 1
    assert "sub: cannot be listed: Permission denied" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["a.png", "größe 写真.png"]


def test_every_kind_that_can_be_read_is_taken_and_the_rest_is_named(folder, weights, tmp_path, capsys) -> None:
    picture = Image.fromarray(np.full((6, 8, 3), 99, np.uint8))
    for name, kind in (
        ("c.jfif", "jpeg"),
        ("d.jpe", "jpeg"),
        ("h.dib", "bmp"),
        ("e.gif", "gif"),
        ("f.avif", "avif"),
        ("g.ppm", "ppm"),
        ("i.jp2", "jpeg2000"),
    ):
        picture.save(folder / name, kind)
    (folder / "link").symlink_to(folder / "sub")
    (folder / "README").touch()
    (folder / "scan.pdf").touch()
    report = tmp_path / "report.json"
    assert upscale(weights, folder, "-o", tmp_path / "out", "--json", report) == 0
    assert names(tmp_path / "out") == [
        *("a.png", "c.jpg", "d.jpg", "e.png", "f.png", "g.png", "größe 写真.png", "h.bmp", "i.png")
    ]
    content = json.loads(report.read_text())
    left_out = {Path(entry["input"]).name: entry["kind"] for entry in content["left_out"]}
    assert left_out == {
        "README": "without a suffix",
        "link": "links to folders",
        "notes.txt": ".txt",
        "scan.pdf": ".pdf",
        "sub": "sub-folders, which need --recursive",
    }
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "9 done, 0 skipped, 0 failed"
    for kind in left_out.values():
        assert f"{kind} (1)" in said[-2]


def test_no_images_found_says_what_would_help(folder, weights, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "above").mkdir()
    folder.rename(tmp_path / "above" / "in")
    for _ in range(2):
        (tmp_path / "above" / f"{_}.pdf").touch()
    assert upscale(weights, tmp_path / "empty", tmp_path / "above", "-o", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'empty'}: no images found: it is empty" in said
    assert "no images found, only .pdf (2), sub-folders, which need --recursive (1)" in said
    assert upscale(weights, tmp_path / "above" / "*n", "-o", tmp_path / "out") == 1
    assert "fits folders only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_links_that_lead_nowhere(folder, weights, tmp_path, capsys) -> None:
    (folder / "link.png").symlink_to("gone.png")
    for given in (folder, folder / "link.png", folder / "l*.png"):
        assert upscale(weights, given, "-o", tmp_path / "out", "--overwrite") == 1
        assert f"{folder / 'link.png'}: is a link to gone.png, which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("upscale", "", "-o", "out"),
        ("upscale", "a.png", "", "-o", "out"),
        ("upscale", "a.png", "-o", ""),
        ("upscale", "a.png", "-o", "out", "--json", ""),
        ("upscale", "a.png", "-o", "out", "--model", ""),
        ("export", "", "-o", "net.onnx"),
        ("export", "ditn-tiny-x4", "-o", ""),
        ("evaluate", "--model", "", "--data", "."),
        ("evaluate", "--model", "bicubic", "--data", ""),
        ("train", "--data", "", "--output", "run"),
    ],
    ids=" ".join,
)
def test_an_empty_name_is_not_the_folder_one_is_in(arguments, folder, monkeypatch, capsys) -> None:
    """As "$FILE" is, where it was never set."""
    monkeypatch.chdir(folder)
    before = names(folder)
    with pytest.raises(SystemExit, match="2"):
        main([*arguments])
    assert "an empty name" in capsys.readouterr().err
    assert names(folder) == before


def test_report_says_what_ran(folder, weights, tmp_path) -> None:
    report = tmp_path / "report.json"
    assert upscale(weights, folder / "a.png", "-o", tmp_path / "b.png", "--json", report, "--backend", "torch") == 0
    content = json.loads(report.read_text())
    assert set(content["backends"].values()) == {"torch"}
    (picture,) = content["pictures"]
    assert (picture["input_size"], picture["output_size"], picture["tiles"]) == ([8, 6], [16, 12], 1)
    assert picture["seconds"] > 0
    assert picture["predicted_peak_bytes"] > 0


def test_free_memory_is_read_once_for_each_image(folder, weights, tmp_path, monkeypatch) -> None:
    """A second look could find other free memory, and other tiles than the report names."""
    read: list[torch.device] = []

    def watched(device: torch.device) -> int:
        read.append(device)
        return 2**40

    monkeypatch.setattr("ditn.inference.plan.free_memory", watched)
    report = tmp_path / "report.json"
    assert upscale(weights, folder, "-o", tmp_path / "out", "--recursive", "--json", report) == 0
    assert len(read) == len(json.loads(report.read_text())["pictures"]) == 3


def test_dry_run_does_nothing(folder, weights, tmp_path, capsys) -> None:
    assert upscale(weights, folder, "-o", tmp_path / "out", "--dry-run") == 0
    assert f"{folder / 'a.png'} -> {tmp_path / 'out' / 'a.png'}" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert upscale(weights, folder / "missing.png", "-o", tmp_path / "b.png", "--dry-run") == 1
    said = capsys.readouterr()
    assert (said.out + said.err).count("missing.png") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", "0"], "--quality is 0"),
        (["--scale", "-1"], "--scale is -1"),
        (["--tile", "big"], "'big' is neither auto"),
        (["--max-memory", "lots"], "'lots' is no amount of memory"),
        (["--dtype", "int8"], "invalid choice"),
        (["--backend", "cudda"], "'cudda' is no backend; there are"),
        (["--json", "nowhere/report.json"], "nowhere is no folder"),
        (["--device", "tpu"], "device 'tpu' cannot be used"),
    ],
)
def test_wrong_usage(folder, weights, tmp_path, capsys, options: list[str], message: str) -> None:
    try:
        code = upscale(weights, folder, "-o", tmp_path / "out", *options)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_missing_model_names_what_ships(folder, tmp_path, capsys) -> None:
    assert main(["upscale", str(folder), "-o", str(tmp_path / "out"), "--model", "nothing"]) == 2
    assert "no file and no shipped model" in capsys.readouterr().err


def test_options_reach_the_upscaler(folder, weights, tmp_path, monkeypatch) -> None:
    seen = {}

    class Spy(ditn.Upscaler):
        def __init__(self, model, **options) -> None:
            seen.update(options, dtype=model.sft.weight.dtype)
            super().__init__(model, **options)

    monkeypatch.setattr(command, "Upscaler", Spy)
    options = ["--tile", "32", "--max-memory", "2G", "--self-ensemble", "--dtype", "bfloat16"]
    assert upscale(weights, folder / "a.png", "-o", tmp_path / "a.png", *options) == 0
    assert (seen["tile"], seen["max_memory"], seen["self_ensemble"]) == (32, 2 * 2**30, True)
    assert seen["dtype"] == torch.bfloat16


def test_amounts_of_memory() -> None:
    assert [parse_bytes(text) for text in ("512", "1k", "1.5MiB", "2G", "2gb")] == [512, 1024, 1572864, 2**31, 2**31]


def test_every_real_picture_keeps_what_it_is(shared, weights, tmp_path) -> None:
    source = shared / "data" / "real"
    if not source.is_dir():
        pytest.skip(f"no pictures: {source} is not a folder")
    output = tmp_path / "out"
    assert upscale(weights, source, "-o", output, "--recursive") == 0
    pictures = [path for path in source.rglob("*") if path.suffix in (".png", ".jpg")]
    assert len(names(output)) == len(pictures) == 29
    for path in pictures:
        with Image.open(path) as given, Image.open(output / path.relative_to(source)) as result:
            assert result.size == (2 * given.width, 2 * given.height)
            assert result.mode == given.mode, path
    with Image.open(output / "RealESRGAN_inputs" / "tree_alpha_16bit.png") as image:
        assert image.tile[0].args == "RGBA;16B"


def test_info(capsys) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "inner_patch_attention" in text
    assert torch.__version__.split("+")[0] in text
    assert main(["info", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["operators"]["gated_ffn"]["forward"]["torch"] == []
    assert content["models"] == ditn.models()


def test_verify_passes_and_notices(weights, capsys, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # which would be minutes of interpreting
    assert main(["verify", "--model", weights]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:1] + lines[-3:]] == [
        ["default", "float32"],
        ["torch", "float32"],
        ["torch", "float16"],
        ["torch", "bfloat16"],
    ]
    from ditn.commands import verify

    monkeypatch.setattr(verify, "EXPECTED_DB", {torch.float32: 400.0})
    assert main(["verify", "--model", weights]) == 1
    assert "WRONG" in capsys.readouterr().out
