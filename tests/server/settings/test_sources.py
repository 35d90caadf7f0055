"""Flags override variables, which override the YAML file; errors name the source."""

import os
from pathlib import Path

import pytest

from server.settings.settings import Settings
from server.settings.sources import (
    ALLOCATOR_VARIABLES,
    READY_NAME,
    SettingsError,
    engine_environment,
    launcher_attempt,
    load_settings,
    model_stores,
    origins,
    successor_environment,
    unknown_variables,
)

pytestmark = pytest.mark.usefixtures("clean_environment")


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


def test_a_flag_overrides_a_variable_which_overrides_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "port: 1003\nmax-num-seqs: 3\nblock_size: 33\n")
    monkeypatch.setenv("SMOE_PORT", "1002")
    monkeypatch.setenv("SMOE_MAX_NUM_SEQS", "2")
    settings = load_settings({"port": "1001"}, config)
    assert (settings.port, settings.max_num_seqs, settings.block_size) == (1001, 2, 33)
    assert settings.max_num_queued_reqs == 1024


def test_keys_of_the_file_may_be_written_like_fields_flags_and_variables(tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "max_num_seqs: 1\nblock-size: 2\nPORT: 3\n")
    settings = load_settings({}, config)
    assert (settings.max_num_seqs, settings.block_size, settings.port) == (1, 2, 3)
    assert origins({}, config)["port"] == str(config)


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


def test_a_bad_variable_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_MAX_NUM_SEQS", "many")
    assert refusal({}).startswith("SMOE_MAX_NUM_SEQS: ")


@pytest.mark.parametrize("keys", [",", " , ", " "])
def test_keys_of_variables_that_are_not_set_do_not_open_the_server(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    """As SMOE_API_KEY=$A,$B without A and B."""
    monkeypatch.setenv("SMOE_API_KEY", keys)
    assert refusal({}) == "SMOE_API_KEY: has nothing beside commas and spaces"


@pytest.mark.parametrize("name", ["served_model_name", "api_key", "step_log", "model", "uds"])
def test_a_value_that_is_not_utf_8_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"SMOE_{name.upper()}", "secret\udcff")
    assert refusal({}) == f"SMOE_{name.upper()}: is not UTF-8"
    assert "is not UTF-8" in refusal({name: "secret\udcff"})
    assert "is not UTF-8" in refusal({name: ["fine", "secret\udcff"]})


def test_a_setting_in_two_spellings_is_refused(tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "api-key: one\napi_key: two\n")
    assert refusal({}, config) == f"--config {config}: api_key is there twice, in different spellings"


def test_the_case_of_the_variable_that_names_the_file_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("smoe_config", str(yaml_file(tmp_path, "port: 1003\n")))
    assert load_settings({}).port == 1003


def test_an_address_by_flags_overrides_a_unix_socket_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = yaml_file(tmp_path, "uds: /run/a.sock\n")
    monkeypatch.setenv("SMOE_PORT", "1002")
    assert str(load_settings({}, config).uds) == "/run/a.sock"
    monkeypatch.setenv("SMOE_UDS", "/run/b.sock")
    assert str(load_settings({}, config).uds) == "/run/b.sock"
    assert load_settings({"port": 9}, config).uds is None and load_settings({"host": "::1"}, config).uds is None
    assert str(load_settings({"port": 9, "uds": "/run/c.sock"}, config).uds) == "/run/c.sock"
    assert origins({"port": 9}, config)["uds"] == "default"


@pytest.mark.parametrize(("given", "path"), [("~/a.sock", "/home/me/a.sock"), ("//run/a.sock", "/run/a.sock")])
def test_the_path_of_a_unix_socket_is_one_that_clients_can_use(
    monkeypatch: pytest.MonkeyPatch, given: str, path: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(load_settings({"uds": given}).uds) == path


def test_a_port_set_by_kubernetes_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT", "tcp://10.0.0.1:8000")
    line = refusal({})
    assert line.startswith("SMOE_PORT: ")
    assert "enableServiceLinks: false" in line


def test_unknown_variables_are_named_but_not_those_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    kubernetes = (
        "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP", "PORT_8000_TCP_ADDR",
        "EAST_SERVICE_HOST", "EAST_PORT", "EAST_PORT_80_TCP_PROTO",
    )  # fmt: skip
    for name in kubernetes:
        monkeypatch.setenv(f"SMOE_{name}", "10.0.0.1")
    monkeypatch.setenv("SMOE_CONFIG", "")
    monkeypatch.setenv("SMOE_MAX_NUM_SEQS", "3")
    assert load_settings({}).port == 8000
    assert unknown_variables() == []
    monkeypatch.setenv("SMOE_PROT", "9000")
    monkeypatch.setenv("smoe_weather", "red")
    assert unknown_variables() == [
        "SMOE_PROT is not a setting; did you mean SMOE_PORT?",
        "smoe_weather is not a setting",
    ]


def test_a_switch_can_be_set_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}).strict_roles is False
    monkeypatch.setenv("SMOE_STRICT_ROLES", "1")
    assert load_settings({}).strict_roles is True


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT", "")
    assert load_settings({}).port == 8000


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("colour: red\n", "colour"),
        ("- port\n", "key: value"),
        ("port: [\n", "not YAML"),
        ("model: 2026-99-99\n", "not YAML"),
        ("[" * 9999, "not YAML"),
        ("port: many\n", ": port: "),
    ],
)
def test_a_bad_file_is_refused_and_named(tmp_path: Path, text: str, part: str) -> None:
    config = yaml_file(tmp_path, text)
    line = refusal({}, config)
    assert part in line
    assert str(config) in line


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal({}, tmp_path / "none.yaml")


@pytest.fixture
def successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one that SIGHUP has started."""
    for name, value in successor_environment(("http", READY_NAME)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))


def drained_pipe() -> int:
    """Return the reading end of a pipe that has been read to its end."""
    reader, writer = os.pipe()
    os.close(writer)
    return reader


@pytest.mark.usefixtures("successor")
@pytest.mark.parametrize("text", ["", " \n\n"])
def test_at_sighup_an_empty_config_file_is_refused_so_that_no_server_loses_its_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    config = yaml_file(tmp_path, text)
    assert refusal({}, config) == f"--config {config}: is empty; a pipe can be read only once"
    monkeypatch.setenv("SMOE_CONFIG", str(config))
    assert refusal({"api_key": ["a"]}) == f"--config {config}: is empty; a pipe can be read only once"


@pytest.mark.usefixtures("successor")
def test_at_sighup_a_config_that_was_a_pipe_is_refused() -> None:
    reader = drained_pipe()
    path = Path(f"/dev/fd/{reader}")
    assert refusal({}, path) == f"--config {path}: is empty; a pipe can be read only once"
    os.close(reader)


@pytest.mark.usefixtures("successor")
def test_at_sighup_a_config_file_is_read_again_even_if_all_its_lines_are_comments(tmp_path: Path) -> None:
    assert load_settings({}, yaml_file(tmp_path, "port: 1003\n")).port == 1003
    assert load_settings({}, yaml_file(tmp_path, "# port: 1003\n")) == Settings()


@pytest.mark.parametrize(
    "variables", [{}, {"LISTEN_PID": "1"}, {"LISTEN_FDNAMES": "http"}], ids=["none", "of another", "of systemd"]
)
@pytest.mark.parametrize("text", ["", "# port: 1003\n"])
def test_a_first_process_may_have_an_empty_config_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], text: str
) -> None:
    if variables:
        _set(monkeypatch, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": f"http:{READY_NAME}"} | variables)
    assert load_settings({}, yaml_file(tmp_path, text)) == Settings()


def test_a_chat_template_may_come_from_a_pipe_that_is_not_read_here() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"template")
    path = Path(f"/dev/fd/{reader}")
    assert load_settings({"chat_template": str(path)}).chat_template == path
    assert os.read(reader, 99) == b"template"
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("successor")
def test_at_sighup_a_chat_template_that_was_a_pipe_or_is_empty_is_refused(tmp_path: Path) -> None:
    reader, file = drained_pipe(), tmp_path / "x.jinja"
    file.touch()
    for path in (f"/dev/fd/{reader}", str(file)):
        assert refusal({"chat_template": path}) == "--chat-template: is empty; a pipe can be read only once"
    file.write_text("{{ messages }}")
    assert load_settings({"chat_template": str(file)}).chat_template == file
    os.close(reader)


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
    assert model_stores().hub_cache == Path(expected)


def test_each_value_can_be_traced_to_where_it_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "port: 1003\nmax-num-seqs: 3\nblock_size: 33\n")
    monkeypatch.setenv("SMOE_PORT", "1002")
    monkeypatch.setenv("SMOE_MAX_NUM_SEQS", "2")
    found = origins({"port": "1001"}, config)
    assert found.keys() == Settings.model_fields.keys()
    assert (found["port"], found["max_num_seqs"], found["block_size"]) == ("--port", "SMOE_MAX_NUM_SEQS", str(config))
    assert found["host"] == "default"


def test_an_engines_memory_grows_in_place_unless_the_allocator_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert engine_environment() == {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ALLOCATOR_VARIABLES:
        with monkeypatch.context() as context:
            context.setenv(name, "expandable_segments:False")
            assert engine_environment() == dict(os.environ)


TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}


def _set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_torchrun_gives_each_process_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN | AGENT)
    settings = load_settings({})
    assert (settings.nnodes, settings.tensor_parallel_size, settings.node_rank) == (4, 4, 3)
    assert (settings.master_addr, settings.master_port) == ("10.0.0.1", 1234)
    assert launcher_attempt(settings) == 2
    sources = origins({})
    assert (sources["node_rank"], sources["nnodes"], sources["port"]) == ("RANK", "WORLD_SIZE", "default")
    assert load_settings({"tensor_parallel_size": "8"}).tensor_parallel_size == 8


def test_a_launched_process_has_the_gpu_of_its_number_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN | {"LOCAL_RANK": "1"})
    assert (load_settings({}).first_gpu, origins({})["first_gpu"]) == (1, "LOCAL_RANK")
    assert load_settings({"first_gpu": "2"}).first_gpu == 2
    assert load_settings({"nnodes": "1"}).first_gpu == 0
    _set(monkeypatch, {"LOCAL_RANK": "one"})
    assert refusal({}) == "LOCAL_RANK: should be a whole number"


def test_another_launcher_leaves_port_and_restarts_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN)
    assert launcher_attempt(load_settings({})) is None


@pytest.mark.parametrize("absent", [*TORCHRUN, "other ranks"])
def test_a_launcher_counts_only_with_all_of_its_variables_and_other_ranks(
    monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    _set(monkeypatch, TORCHRUN)
    _set(monkeypatch, {"WORLD_SIZE": "1"} if absent == "other ranks" else {absent: ""})
    assert load_settings({}) == Settings()


def test_what_is_given_counts_and_not_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN | AGENT)
    settings = load_settings({"nnodes": "2", "master_addr": "10.0.0.2", "tensor_parallel_size": "2"})
    assert (settings.nnodes, settings.node_rank, settings.master_port) == (2, 0, 29500)
    assert launcher_attempt(settings) is None


def test_a_bad_variable_of_the_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN | {"RANK": "third"})
    assert refusal({}) == "RANK: should be a whole number"


def test_sampling_defaults_are_json_in_flags_and_variables_and_a_mapping_in_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = {"temperature": 0.7, "top_k": 40}
    file = tmp_path / "smoe.yaml"
    file.write_text("override-generation-config:\n  temperature: 0.7\n  top_k: 40\n")
    text = '{"temperature": 0.7, "top_k": 40}'
    assert load_settings({}, file).override_generation_config == expected
    assert load_settings({"override_generation_config": text}).override_generation_config == expected
    monkeypatch.setenv("SMOE_OVERRIDE_GENERATION_CONFIG", text)
    assert load_settings({}).override_generation_config == expected
