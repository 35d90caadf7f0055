"""Settings as --print-config shows them."""

from server.cli.serve import format_setting
from server.settings.sources import load_settings


def test_a_key_is_never_shown() -> None:
    settings = load_settings({"api_key": ["secret", "other"]})
    assert [format_setting(settings, name) for name in ("api_key", "port", "threads")] == ["2 of them", "8000", "-"]
