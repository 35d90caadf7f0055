"""Flags before variables before the YAML file before defaults; and one line for what cannot be."""

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, engine_config, hub_cache_dir, load_settings, origins, shown


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("SMOE_", "HF_", "XDG_CACHE")):
            monkeypatch.delenv(name)


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "smoe.yaml"
    path.write_text(text)
    return path


def refusal(flags: dict[str, object], config: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, config)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_flag_goes_before_a_variable_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "port: 1003\nmax-num-seqs: 3\nblock_size: 33\n")
    monkeypatch.setenv("SMOE_PORT", "1002")
    monkeypatch.setenv("SMOE_MAX_NUM_SEQS", "2")
    settings = load_settings({"port": "1001"}, config)
    assert (settings.port, settings.max_num_seqs, settings.block_size) == (1001, 2, 33)
    assert settings.max_num_queued_reqs == 1024


def test_the_file_can_be_named_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMOE_CONFIG", str(yaml_file(tmp_path, "port: 1003\n")))
    assert load_settings({}).port == 1003


def test_several_values_come_from_flags_variables_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "allowed-origins: [https://a.example, https://b.example]\n")
    monkeypatch.setenv("SMOE_API_KEY", "one, two")
    settings = load_settings({"served_model_name": ["x", "y"]}, config)
    assert settings.api_key == ("one", "two")
    assert settings.served_model_name == ("x", "y")
    assert settings.allowed_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1GiB", 2**30), ("1073741824", 2**30), ("512 MiB", 2**29), ("1.5g", 1_500_000_000), ("2kb", 2000), ("1Ki", 1024)],
)
def test_sizes_take_units(text: str, num_bytes: int) -> None:
    assert load_settings({"kv_cache_memory_bytes": text}).kv_cache_memory_bytes == num_bytes


@pytest.mark.parametrize("text", ["-1GiB", "GiB", "1XiB", "1e9", "0", "1 2", ""])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    assert refusal({"max_body_bytes": text}).startswith("--max-body-bytes: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"), ("port", "-1"), ("port", "x"), ("max_num_seqs", "0"), ("max_model_len", "1.5"),
        ("block_size", "0"), ("dtype", "float8"), ("device", "tpu"), ("sliding_window", "0"), ("root_path", "v1"),
        ("shutdown_timeout", "-1"), ("chat_template", "/nowhere/x.jinja"), ("shutdown_timeout", "nan"),
        ("api_key", ["a", "a"]), ("api_key", [""]), ("served_model_name", ["x", "x"]), ("log_level", "x"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_line_that_names_the_flag(name: str, value: object) -> None:
    assert refusal({name: value}).startswith(f"--{name.replace('_', '-')}: ")


def test_a_bad_variable_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_MAX_NUM_SEQS", "many")
    assert refusal({}).startswith("SMOE_MAX_NUM_SEQS: ")


def test_what_kubernetes_puts_into_smoe_port_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT", "tcp://10.0.0.1:8000")
    line = refusal({})
    assert line.startswith("SMOE_PORT: ")
    assert "enableServiceLinks: false" in line


def test_service_links_other_than_the_port_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("SMOE_SERVICE_HOST", "10.0.0.1")
    assert load_settings({}).port == 8000


def test_a_switch_can_be_set_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}).strict_roles is False
    monkeypatch.setenv("SMOE_STRICT_ROLES", "1")
    assert load_settings({}).strict_roles is True


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT", "")
    assert load_settings({}).port == 8000


@pytest.mark.parametrize(
    ("text", "part"),
    [("colour: red\n", "colour"), ("- port\n", "key: value"), ("port: [\n", "not YAML"), ("port: many\n", ": port: ")],
)
def test_a_bad_file_is_refused_and_named(tmp_path: Path, text: str, part: str) -> None:
    config = yaml_file(tmp_path, text)
    line = refusal({}, config)
    assert part in line
    assert str(config) in line


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal({}, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "flags",
    [
        {"num_kv_blocks": "5", "kv_cache_memory_bytes": "1GiB"},
        {"ssl_keyfile": __file__},
        {"metrics_auth": True},
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, object]) -> None:
    assert "--" in refusal(flags)


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(load_settings({"api_key": ["secret"]}))


def test_the_engine_gets_what_it_was_given(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "device": "cpu", "backend": "native", "isa": "avx2", "dtype": "float32", "threads": "2",
            "max_model_len": "100", "max_num_seqs": "5", "max_num_batched_tokens": "64", "block_size": "8",
            "num_kv_blocks": "40", "no_enable_prefix_caching": True, "scheduling_policy": "fcfs",
            "sliding_window": "32",
        }
    )  # fmt: skip
    config = engine_config(settings, tmp_path)
    assert config.model == str(tmp_path)
    for name in (
        "device", "backend", "isa", "dtype", "threads", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
        "block_size", "num_kv_blocks", "kv_cache_memory_bytes", "scheduling_policy", "sliding_window",
    ):  # fmt: skip
        assert getattr(config, name) == getattr(settings, name)
    assert config.enable_prefix_caching is False
    assert config.sliding_window == 32


def test_the_defaults_are_the_engines_own(tmp_path: Path) -> None:
    from engine.config import EngineConfig

    assert engine_config(Settings(), tmp_path) == EngineConfig(model=str(tmp_path))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_where_hugging_face_keeps_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache_dir() == Path(expected)


def test_each_value_can_be_traced_to_where_it_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "port: 1003\nmax-num-seqs: 3\nblock_size: 33\n")
    monkeypatch.setenv("SMOE_PORT", "1002")
    monkeypatch.setenv("SMOE_MAX_NUM_SEQS", "2")
    found = origins({"port": "1001"}, config)
    assert found.keys() == Settings.model_fields.keys()
    assert (found["port"], found["max_num_seqs"], found["block_size"]) == ("--port", "SMOE_MAX_NUM_SEQS", str(config))
    assert found["host"] == "default"


def test_a_key_is_never_shown() -> None:
    settings = load_settings({"api_key": ["secret", "other"]})
    assert [shown(settings, name) for name in ("api_key", "port", "threads")] == ["2 of them", "8000", "-"]


def test_a_size_beyond_all_memory_is_an_error_and_no_traceback() -> None:
    with pytest.raises(SettingsError, match="--max-body-bytes: is more than any machine has"):
        load_settings({"max_body_bytes": "9" * 400})
