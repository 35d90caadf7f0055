"""Tasks of `smoe bench kernels` and `engine` from the texts of the command line."""

import subprocess

import pytest

from server.bench.offline import BenchError, make_task, measure, parse_counts, table


def test_counts_are_parsed_or_rejected_by_the_name_of_their_flag() -> None:
    assert parse_counts("--rows", "1,4,16") == [1, 4, 16]
    for text in ("", "a", "1,,2", "0", "1,-2"):
        with pytest.raises(BenchError, match="--rows"):
            parse_counts("--rows", text)


def test_a_task_has_the_settings_of_the_engine_and_defaults_by_device() -> None:
    task = make_task("engine", {"device": "cpu", "threads": "2", "dtype": "float32"}, None, [3], None, None)
    assert (task.engine.threads, task.engine.dtype, task.engine.enable_prefix_caching) == (2, "float32", False)
    assert task.engine.speculation == "off"  # a decode step has one token of each request
    assert (task.preset, task.rows, task.prefills) == ("bench-400m", [3], [128, 512, 2048])
    assert make_task("kernels", {"device": "cuda"}, None, None, None, None).preset == "mixtral-8x7b"


@pytest.mark.parametrize("settings", [{"isa": "mmx"}, {"threads": "many"}])
def test_an_invalid_setting_is_named(settings: dict[str, str]) -> None:
    with pytest.raises(BenchError, match=next(iter(settings))):
        make_task("kernels", {"device": "cpu", **settings}, None, None, None, None)


@pytest.mark.parametrize(
    ("settings", "preset", "line"),
    [
        (
            {"isa": "mmx"},
            None,
            "--isa mmx: should be auto, portable, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx, neon or neonbf16",
        ),
        ({"threads": "many"}, None, "--threads many: should be a number"),
        ({}, "nope", "--preset nope: should be mixtral-8x7b, bench-400m or tiny"),
    ],
)
def test_a_refusal_names_the_flag_its_value_and_what_it_should_be(
    settings: dict[str, str], preset: str | None, line: str
) -> None:
    with pytest.raises(BenchError) as caught:
        make_task("kernels", {"device": "cpu", **settings}, preset, None, None, None)
    assert str(caught.value) == line


def test_a_process_that_has_named_the_fault_ends_the_command_without_another_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = make_task("kernels", {"device": "cpu"}, None, None, None, None)
    for code, ending in ((2, SystemExit), (3, BenchError)):
        ended = subprocess.CompletedProcess([], code, b"")
        monkeypatch.setattr(subprocess, "run", lambda *_, ended=ended, **__: ended)
        with pytest.raises(ending):
            measure(task)


def test_the_table_has_the_limits_and_a_line_per_step() -> None:
    step = {"kind": "decode", "batch": 4, "context": 256, "seconds": 0.002, "tokens_per_s": 2000.0}
    step |= {"gigabytes_per_s": 10.0, "gigaops_per_s": 50.0, "share": 0.5}
    figures = {"model": "tiny", "numerics": "n", "quantization": "none", "steps": [step]}
    limits = {"bytes_per_s": 20e9, "operations_per_s": {"float32": 100e9}}
    *_, last = lines = table({**figures, "roofline": limits}).splitlines()
    assert "memory 20.0 GB/s, float32 100 Gop/s" in lines[1]
    assert last.split() == ["decode", "4", "256", "2.000", "2,000", "10.0", "50", "50%"]
