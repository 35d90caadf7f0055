"""Flags follow from the fields of the settings."""

import pytest

from server.settings.flags import SettingFlag, setting_flags
from server.settings.settings import GROUPS, Settings

FLAGS = {flag.name: flag for flag in setting_flags()}


def test_every_setting_has_a_flag_a_group_and_a_description() -> None:
    assert list(FLAGS) == list(Settings.model_fields)
    assert {flag.group for flag in FLAGS.values()} == set(GROUPS.values())
    assert all(flag.description for flag in FLAGS.values())


@pytest.mark.parametrize(
    ("name", "metavar", "default"),
    [
        ("port", "N", "8000"),
        ("shutdown_timeout", "SECONDS", "60"),
        ("kv_cache_memory_bytes", "SIZE", "half of the memory left after the weights; on a GPU most of it"),
        ("max_body_bytes", "SIZE", "1MiB"),
        ("ssl_keyfile", "FILE", ""),
        ("api_key", "TEXT", "no authentication"),
        ("api_key_file", "FILE", ""),
        ("dtype", "auto|float32|bfloat16", "auto"),
        ("sliding_window", "model|none|N", "model"),
        ("threads", "N", "one per core"),
        ("verify", "", ""),
        ("override_generation_config", "JSON", ""),
        ("async_scheduling", "", "on for a single GPU, else off"),
    ],
)
def test_placeholder_and_default_follow_from_the_type(name: str, metavar: str, default: str) -> None:
    flag = FLAGS[name]
    assert (flag.flag, flag.metavar, flag.default) == (f"--{name.replace('_', '-')}", metavar, default)
    assert flag.is_switch == (not metavar)


def test_a_list_is_repeatable() -> None:
    assert [flag.name for flag in FLAGS.values() if flag.is_repeatable] == [
        "served_model_name",
        "lora",
        "api_key",
        "allowed_origins",
        "allowed_hosts",
    ]


def test_the_help_text_has_the_default() -> None:
    flag = SettingFlag("a_b", "--a-b", "G", "Does it.", "3", "N", is_repeatable=True)
    assert flag.help_text == "Does it. May be repeated. [default: 3]"
