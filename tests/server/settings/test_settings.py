"""Values that settings accept, and one line for each that they reject."""

from pathlib import Path

import pytest

from engine.messages import Start, encode_frame
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.settings.sources import SettingsError, load_settings

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("port", "x", "should be a whole number"),
        ("port", "70000", "should be at most 65535"),
        ("max_num_seqs", "0", "should be more than 0"),
        ("shutdown_timeout", "x", "should be a number"),
        ("device", "tpu", "should be auto, cpu or cuda"),
        ("sliding_window", "x", "should be model or none or a whole number"),
        ("sliding_window", "0", "should be model or none or more than 0"),
        ("verify", "maybe", "should be true or false"),
        ("host", 3, "should be text"),
        ("ssl_keyfile", "/no/where", "there is no such file"),
        ("root_path", "v1", "should start with /"),
        ("lora", ["sql"], "should be NAME=DIR, such as sql=/models/sql-adapter"),
        ("lora", ["=/a"], "should be NAME=DIR, such as sql=/models/sql-adapter"),
        ("lora", ["sql="], "should be NAME=DIR, such as sql=/models/sql-adapter"),
        ("lora", ["sql=/a", "sql=/b"], "has the same name twice"),
        ("override_generation_config", "0.7", 'should be a JSON object such as {"temperature": 0.7}'),
        ("override_generation_config", "{temperature: 0.7}", 'should be a JSON object such as {"temperature": 0.7}'),
        (
            "override_generation_config",
            '{"max_new_tokens": 5}',
            "has a field that is none of temperature, top_p, top_k, min_p, repetition_penalty",
        ),
        ("override_generation_config", '{"temperature": 3}', "temperature must be a number from 0 to 2"),
        ("override_generation_config", '{"top_k": 1.5}', "top_k must be an integer"),
        ("override_generation_config", '{"top_p": NaN}', "top_p must be a number from 1e-09 to 1"),
        ("otlp_traces_endpoint", "127.0.0.1:4318", "should be a URL such as http://127.0.0.1:4318"),
        ("otlp_traces_endpoint", "grpc://a:4317", "should be a URL such as http://127.0.0.1:4318"),
        ("otlp_traces_endpoint", "http://a:port", "should be a URL such as http://127.0.0.1:4318"),
    ],
)
def test_a_refusal_says_in_words_what_a_value_should_be(name: str, value: object, sentence: str) -> None:
    assert refusal({name: value}) == f"--{name.replace('_', '-')}: {sentence}"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_no_number_is_too_large_for_the_engine(name: str) -> None:
    """A number either is refused or is no integer of the engine's, whose messages take 64 bits."""
    for value in (10**20, "9" * 20):
        try:
            settings = load_settings({name: value})
        except SettingsError as error:
            assert str(error).startswith(f"--{name.replace('_', '-')}: ")
        else:
            assert encode_frame(Start(engine_config(settings, Path("/model"))))


@pytest.mark.parametrize("value", ["99999999999TiB", "2000000TiB", 1 << 61])
def test_a_size_is_one_that_a_machine_can_have(value: object) -> None:
    assert refusal({"kv_cache_memory_bytes": value}).startswith("--kv-cache-memory-bytes: ")


@pytest.mark.parametrize("value", [2**31, 10**20, "1" * 20])
def test_a_count_fits_the_integers_of_kernels(value: object) -> None:
    assert refusal({"max_num_seqs": value}) == "--max-num-seqs: should be at most 2147483647"


def refusal(flags: dict[str, object]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"), ("port", "-1"), ("port", "x"), ("max_num_seqs", "0"), ("max_model_len", "1.5"),
        ("block_size", "0"), ("dtype", "float8"), ("device", "tpu"), ("sliding_window", "0"), ("root_path", "v1"),
        ("shutdown_timeout", "-1"), ("chat_template", "/nowhere/x.jinja"), ("shutdown_timeout", "nan"),
        ("api_key", ["a", "a"]), ("api_key", [""]), ("served_model_name", ["x", "x"]), ("log_level", "x"),
        ("allowed_hosts", ["http://a"]), ("allowed_hosts", ["a:80"]), ("allowed_hosts", ["a/b"]),
        ("allowed_hosts", [""]), ("allowed_hosts", ["*.a"]), ("allowed_hosts", ["[::1]:80"]), ("allowed_hosts", ["."]),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_line_that_names_the_flag(name: str, value: object) -> None:
    assert refusal({name: value}).startswith(f"--{name.replace('_', '-')}: ")


@pytest.mark.parametrize(
    "flags",
    [
        {"num_kv_blocks": "5", "kv_cache_memory_bytes": "1GiB"},
        {"ssl_keyfile": __file__},
        {"metrics_auth": True},
        {"lora": ["sql=/a"], "served_model_name": ["x", "sql"]},
        {"lora": ["smoe-demo=/a"]},
        {"lora": ["Mixtral-8x7B=/a"], "model": "/nowhere/Mixtral-8x7B.gguf", "served_model_name": ["Mixtral-8x7B"]},
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, object]) -> None:
    assert "--" in refusal(flags)


def test_an_adapter_may_have_a_name_that_the_model_does_not_use() -> None:
    flags = {"lora": ["smoe-demo=/a"], "served_model_name": ["x"]}
    assert load_settings(flags).model_names == ("x",)
    assert load_settings({}).model_names == ("smoe-demo",)
    assert "--lora smoe-demo: the model itself" in refusal({"lora": ["smoe-demo=/a"]})


def test_names_and_addresses_are_hosts() -> None:
    names = ("a.example", "my_box", "10.0.0.1", "::1", "[fd00::1]", "*")
    assert load_settings({"allowed_hosts": list(names)}).allowed_hosts == names


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(load_settings({"api_key": ["secret"]}))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            {"nnodes": "2", "tensor_parallel_size": "2"},
            "--nnodes 2 needs --master-addr: an address of the host with --node-rank 0",
        ),
        (
            {"nnodes": "2", "tensor_parallel_size": "2", "master_addr": ""},
            "--nnodes 2 needs --master-addr: an address of the host with --node-rank 0",
        ),
        ({"node_rank": "1"}, "--node-rank 1: should be less than --nnodes, which is 1"),
        (
            {"nnodes": "2", "master_addr": "a"},
            "--nnodes 2 needs a --tensor-parallel-size that it divides, such as 2; it is 1",
        ),
        ({"nnodes": "0"}, "--nnodes: should be more than 0"),
        ({"node_rank": "-1"}, "--node-rank: should be at least 0"),
        ({"master_port": "0"}, "--master-port: should be at least 1"),
        ({"group_timeout": "1"}, "--group-timeout: should be at least 2"),
        ({"group_timeout": "nan"}, "--group-timeout: should be at most 600"),
    ],
)
def test_settings_of_hosts_that_cannot_work_are_one_line(flags: dict[str, object], line: str) -> None:
    assert refusal(flags) == line


def test_settings_without_adapters_do_not_look_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.settings.settings.model_id", lambda name: pytest.fail("it looked"))
    assert load_settings({"model": "/private/x"}).model == "/private/x"
