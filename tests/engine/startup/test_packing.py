"""Packing ends with a complete pack or with none: full disks, kills, changes of the source, a second process."""

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.capacity.machine import host_resources
from engine.capacity.pack_messages import PackReport, PackRequest
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.startup import packing
from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import MAGIC, WEIGHTS_NAME, read_header
from model.pack.writer import TensorWriter
from tests.support.checkpoints.mixtral import Shape, save_embedding_checkpoint, save_random_checkpoint
from tests.support.checkpoints.packs import make_pack
from tests.support.paths import DEMO, ROOT


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_pack_has_what_serving_reads_and_no_weights_of_the_source(tmp_path: Path) -> None:
    packed = make_pack(DEMO, tmp_path / "sub" / "p", quantization="int4")
    assert names_in(packed) == [
        "config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json", WEIGHTS_NAME,
    ]  # fmt: skip
    assert load_config(packed) == load_config(DEMO)
    assert names_in(packed.parent) == ["p"]
    header = read_header(packed)
    assert (header.source, header.quantization, header.dtype) == (str(DEMO), "int4", "bfloat16")


def test_an_embedding_models_pack_is_one_too(tmp_path: Path) -> None:
    save_embedding_checkpoint(Shape(num_experts=0), tmp_path / "e")
    config, _ = load_config(tmp_path / "e")
    packed, _ = load_config(make_pack(tmp_path / "e", tmp_path / "p"))
    assert config.embeds and packed == config


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TensorWriter.write

    def fill(self: TensorWriter, name: str, parts: Any) -> None:
        if name == "layers.3.gate":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, name, parts)

    monkeypatch.setattr(TensorWriter, "write", fill)
    with pytest.raises(CheckpointError, match=r"^/.*/p cannot be written: No space left on device$"):
        make_pack(DEMO, tmp_path / "p")
    assert names_in(tmp_path) == []


def test_nothing_says_that_it_is_a_pack_before_everything_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call of fsync but the last two, of the prefix and of the folder, the file has no prefix yet."""
    starts: list[bytes] = []
    original = os.fsync

    def look(descriptor: int) -> None:
        original(descriptor)
        starts.append((tmp_path / "p.partial" / WEIGHTS_NAME).read_bytes()[:8] if not starts[5:] else MAGIC)

    monkeypatch.setattr(os, "fsync", look)
    make_pack(DEMO, tmp_path / "p")
    assert starts == [bytes(8)] * 5 + [MAGIC] * (len(starts) - 5) and len(starts) > 5


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = packing.shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(EngineConfigError, match=r"needs \d+\.\d MiB of disk, and 1\.0 MiB are free in /"):
        make_pack(DEMO, tmp_path / "p")
    assert names_in(tmp_path) == []
    assert host_resources.format_bytes(1 << 20) == "1.0 MiB"


def test_a_name_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(CheckpointError, match=r"/p exists; choose another name, or move it away$"):
        make_pack(DEMO, tmp_path / "p")
    assert names_in(tmp_path) == ["p"] and names_in(tmp_path / "p") == []


def test_a_pack_is_not_packed_again(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path / "a")
    packed = make_pack(tmp_path / "a", tmp_path / "p")
    with pytest.raises(EngineConfigError, match="is a pack; give the checkpoint that it was made of"):
        make_pack(packed, tmp_path / "q")


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_random_checkpoint(Shape(), tmp_path / "a")
    original = TensorWriter.write

    def touch(self: TensorWriter, name: str, parts: Any) -> None:
        (tmp_path / "a" / "model.safetensors").touch()
        original(self, name, parts)

    monkeypatch.setattr(TensorWriter, "write", touch)
    with pytest.raises(CheckpointError, match="files were replaced while they were packed"):
        make_pack(tmp_path / "a", tmp_path / "p")
    assert names_in(tmp_path) == ["a"]


def test_two_processes_do_not_write_the_same_pack(tmp_path: Path) -> None:
    (tmp_path / "p.partial").mkdir()
    with (tmp_path / "p.partial" / WEIGHTS_NAME).open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match=r"^another process is writing .*/p\.partial$"):
            make_pack(DEMO, tmp_path / "p")
    assert names_in(tmp_path) == ["p.partial"]


KILLED_AT = "layers.2.experts.3"
KILLED = f"""
import os, signal, sys
from engine.startup import packing
from model.pack.writer import TensorWriter
original = TensorWriter.write
def write(self, name, parts):
    original(self, name, parts)
    if name == "{KILLED_AT}":
        self._stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
TensorWriter.write = write
sys.exit(packing.main())
"""


def test_a_killed_process_leaves_nothing_that_loads_and_the_next_one_removes_it(tmp_path: Path) -> None:
    request = msgspec.json.encode(PackRequest(EngineConfig(model=str(DEMO), threads=1), str(tmp_path / "p")))
    killed = subprocess.run([sys.executable, "-c", KILLED], input=request, capture_output=True, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert names_in(tmp_path) == ["p.partial"]
    assert (tmp_path / "p.partial" / WEIGHTS_NAME).stat().st_size > 1_000_000
    with pytest.raises(CheckpointError, match="is not a pack, or was not written to its end"):
        read_header(tmp_path / "p.partial")
    (tmp_path / "p.partial" / "chat_template.jinja").write_text("of another model")
    packed = make_pack(DEMO, tmp_path / "p")
    assert names_in(tmp_path) == ["p"] and "chat_template.jinja" not in names_in(packed)
    assert read_header(packed).source == str(DEMO)


def test_an_interrupt_leaves_nothing_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def interrupt(self: TensorWriter, name: str, parts: Any) -> None:
        raise KeyboardInterrupt

    request = msgspec.json.encode(PackRequest(EngineConfig(model=str(DEMO), threads=1), str(tmp_path / "p")))
    monkeypatch.setattr(TensorWriter, "write", interrupt)
    monkeypatch.setattr(packing, "die_with_parent", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["packing"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request)))
    assert packing.main() == 130
    assert names_in(tmp_path) == [] and capfdbinary.readouterr().err == b""


def test_too_little_memory_for_a_layer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def fail(self: TensorWriter, name: str, parts: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    request = msgspec.json.encode(PackRequest(EngineConfig(model=str(DEMO), threads=1), str(tmp_path / "p")))
    monkeypatch.setattr(TensorWriter, "write", fail)
    monkeypatch.setattr(packing, "die_with_parent", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["packing"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request)))
    assert packing.main() == packing.FAILED
    assert names_in(tmp_path) == [] and b"out of memory: a layer" in capfdbinary.readouterr().out


def test_the_program_reports_progress_and_errors_in_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(packing, "die_with_parent", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["packing"])

    def run(target: Path) -> tuple[int, list[PackReport]]:
        request = msgspec.json.encode(PackRequest(EngineConfig(model=str(DEMO), threads=1), str(target)))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request)))
        code = packing.main()
        lines = capfdbinary.readouterr().out.splitlines()
        return code, [msgspec.json.decode(line, type=PackReport) for line in lines]

    code, reports = run(tmp_path / "p")
    weights = [report for report in reports if report.phase == "weights"]
    assert code == 0 and [report.phase for report in reports[-2:]] == ["writing to the disk", "done"]
    assert weights[-1].done_bytes == weights[-1].total_bytes > 0
    assert reports[-1].done_bytes == (tmp_path / "p" / WEIGHTS_NAME).stat().st_size
    code, [failed] = run(tmp_path / "p")
    assert code == 2 and failed.phase == "failed" and "exists; choose another name" in failed.error
