"""docs/configuration.md is what the generator writes."""

from server.cli.configuration_docs import configuration_page
from server.settings.flags import setting_flags
from tests.support.paths import ROOT

COMMAND = "python -m server.cli.configuration_docs > docs/configuration.md"


def test_the_committed_page_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "configuration.md").read_text()
    assert committed == configuration_page(), f"run: {COMMAND}"
    assert COMMAND in committed


def test_a_default_of_0_is_shown() -> None:
    rows = [line for line in configuration_page().splitlines() if line.startswith(("| `--first-gpu", "| `--node-rank"))]
    assert [row.split(" | ")[1] for row in rows] == ["0", "0"]


def test_the_page_has_every_flag_with_a_sentence() -> None:
    page = configuration_page().partition("## Flags of other servers")[0]
    for flag in setting_flags():
        assert flag.description.endswith(".") and flag.description[0].isupper()
        if flag.name != "model":
            assert page.count(f"| `{flag.flag}`") + page.count(f"| `{flag.flag} ") == 1
