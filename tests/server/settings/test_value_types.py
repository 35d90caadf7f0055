"""server/settings/value_types.py: sizes with units, and lists from environment variables."""

import pytest

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


def test_a_list_is_split_at_commas_and_other_values_stay() -> None:
    assert split_list(" a, ,b ") == ["a", "b"]
    assert split_list(("a,b",)) == ("a,b",)


def test_a_proxys_prefix_ends_without_a_slash() -> None:
    assert load_settings({"root_path": "/llm/"}).root_path == "/llm"
