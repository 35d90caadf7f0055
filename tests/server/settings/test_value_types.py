"""server/settings/value_types.py: sizes with units, lists from environment variables, files."""

import errno
import os
import threading
from pathlib import Path

import pytest

from server.cli.serve import format_setting
from server.settings.engine_config import engine_config
from server.settings.sources import SettingsError, load_settings
from server.settings.value_types import split_list

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1GiB", 2**30), ("1073741824", 2**30), ("512 MiB", 2**29), ("1.5g", 1_500_000_000), ("2kb", 2000), ("1Ki", 1024)],
)
def test_sizes_take_units(text: str, num_bytes: int) -> None:
    assert load_settings({"kv_cache_memory_bytes": text}).kv_cache_memory_bytes == num_bytes


@pytest.mark.parametrize("text", ["-1GiB", "GiB", "1XiB", "1e9", "0", "1 2", ""])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--max-body-bytes: "):
        load_settings({"max_body_bytes": text})


def test_a_size_beyond_all_memory_is_an_error_and_no_traceback() -> None:
    with pytest.raises(SettingsError, match="--max-body-bytes: is more than any machine has"):
        load_settings({"max_body_bytes": "9" * 400})


@pytest.mark.parametrize(
    ("text", "count"), [("32k", 32_000), ("32K", 32_768), ("25.6k", 25_600), ("1M", 1 << 20), (" 4096 ", 4096)]
)
def test_numbers_of_tokens_take_the_units_of_vllm(text: str, count: int) -> None:
    settings = load_settings({"max_model_len": text, "max_num_batched_tokens": text})
    assert (settings.max_model_len, settings.max_num_batched_tokens) == (count, count)


@pytest.mark.parametrize("text", ["0.0001k", "1.5", "k", "-1k", "0k", "4 k", "4g", "99999999M", "9" * 400 + "k"])
def test_an_invalid_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--max-model-len: "):
        load_settings({"max_model_len": text})


def test_log_levels_may_have_capitals() -> None:
    assert load_settings({"log_level": "DEBUG"}).log_level == "debug"
    with pytest.raises(SettingsError, match=r"^--log-level: "):
        load_settings({"log_level": "TRACE"})


def test_a_list_is_split_at_commas_and_other_values_stay() -> None:
    assert split_list(" a, ,b ") == ["a", "b"]
    assert split_list(("a,b",)) == ("a,b",)


def test_a_proxys_prefix_ends_without_a_slash() -> None:
    assert load_settings({"root_path": "/llm/"}).root_path == "/llm"


def key_file(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "keys"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"one\ntwo\n", ("one", "two")),
        (b"one", ("one",)),
        (b"# team a\n\n  one  \r\n\t\r\n  # two\nth#ree\n", ("one", "th#ree")),
        ("\ufeffschl\u00fcssel\na\u2028b\n".encode(), ("schl\u00fcssel", "a\u2028b")),
    ],
)
def test_a_key_file_has_one_key_per_line(tmp_path: Path, content: bytes, keys: tuple[str, ...]) -> None:
    assert load_settings({"api_key_file": key_file(tmp_path, content)}).api_keys == keys


def test_keys_of_file_and_flags_add_up_to_tenants(tmp_path: Path) -> None:
    settings = load_settings(
        {"api_key": ["zero"], "api_key_file": key_file(tmp_path, b"one\ntwo"), "metrics_auth": True}
    )
    assert settings.api_keys == ("zero", "one", "two")
    assert engine_config(settings, tmp_path).num_tenants == 3


def test_a_variable_or_the_yaml_file_may_name_the_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, b"one")
    config = tmp_path / "config.yaml"
    config.write_text(f"api-key-file: {path}\n")
    assert load_settings({}, config).api_keys == ("one",)
    monkeypatch.setenv("SMOE_API_KEY_FILE", path)
    assert load_settings({}).api_keys == ("one",)


def test_a_key_file_may_be_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("one\n",))
    writer.start()
    assert load_settings({"api_key_file": str(path)}).api_keys == ("one",)
    writer.join()


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"# a comment\n", b"\xff\xfe\x00", b"same\nsame\n", b"x" * 2_000_000]
)
def test_a_bad_key_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SettingsError, match=r"\A--api-key-file: [^\n]+\Z") as caught:
        load_settings({"api_key_file": key_file(tmp_path, content)})
    assert "same\n" not in str(caught.value)


def test_a_pipe_without_keys_is_refused_with_the_reason_that_it_has_at_sighup() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(SettingsError) as caught:
        load_settings({"api_key_file": f"/dev/fd/{reader}"})
    assert str(caught.value) == "--api-key-file: has no keys; write one per line; a pipe can be read only once"
    os.close(reader)


FILES = ("chat_template", "ssl_keyfile", "ssl_certfile")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/no/where", "there is no such file"),
        ("a\0b", "there is no such file"),
        ("/", "should be a file, not a directory"),
        ("/dev/null", "should be a file"),
        (f"{__file__}/x", "Not a directory"),
        ("a" * 300, "File name too long"),
        (3, "should be the path of a file"),
    ],
)
def test_a_path_that_is_no_file_is_refused_in_one_line(name: str, path: object, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({name: path})
    assert str(caught.value) == f"--{name.replace('_', '-')}: {fault}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_below_a_folder_that_may_not_be_entered_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setenv(f"SMOE_{name.upper()}", "/etc/letsencrypt/live/a.example/file.pem")
    monkeypatch.setattr(Path, "stat", refuse)  # root may enter any folder
    with pytest.raises(SettingsError) as caught:
        load_settings({})
    assert str(caught.value) == f"SMOE_{name.upper()}: Permission denied"


def test_a_certificate_and_its_key_cannot_be_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("ssl-keyfile", "ssl-certfile"):
        with pytest.raises(SettingsError) as caught:
            load_settings({name.replace("-", "_"): str(tmp_path / "pipe")})
        assert str(caught.value) == f"--{name}: is read several times, but a pipe can be read only once; give a file"


@pytest.mark.parametrize("path", ["/nowhere/keys", "/", "a\0b", ""])
def test_a_key_file_that_cannot_be_read_is_refused_in_one_line(path: str) -> None:
    with pytest.raises(SettingsError, match=r"\A--api-key-file: [^\n]+\Z"):
        load_settings({"api_key_file": path})


def test_a_key_in_place_of_the_path_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_API_KEY_FILE", "secret-one\nsecret-two")
    with pytest.raises(SettingsError, match=r"\ASMOE_API_KEY_FILE: [^\n]+\Z") as caught:
        load_settings({})
    assert "secret" not in str(caught.value)


def test_a_key_in_the_file_and_in_a_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--api-key-file: "):
        load_settings({"api_key": ["one"], "api_key_file": key_file(tmp_path, b"one")})


def test_keys_of_a_file_are_not_shown(tmp_path: Path) -> None:
    settings = load_settings({"api_key_file": key_file(tmp_path, b"secret")})
    assert "secret" not in repr(settings)
    assert format_setting(settings, "api_key_file") == str(tmp_path / "keys")
