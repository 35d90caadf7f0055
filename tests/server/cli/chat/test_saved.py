"""server/cli/chat/saved.py: conversations in files, read back as they were; nothing is overwritten."""

from pathlib import Path

import pytest

from server.cli.chat.saved import SavedChatError, load, save

NOBODY = "~nobody-has-this-name/chat.json"
MESSAGES = [{"role": "system", "content": "Grüße"}, {"role": "user", "content": 'a\n"b"'}]


def test_a_saved_chat_is_read_back_and_never_overwritten(tmp_path: Path) -> None:
    path = save(str(tmp_path / "chat.json"), MESSAGES)
    assert load(str(path)) == MESSAGES
    with pytest.raises(SavedChatError, match="exists"):
        save(str(path), [])
    assert load(str(path)) == MESSAGES


@pytest.mark.parametrize("text", ["", "[]", '{"messages": [1]}', '{"messages": [{"role": "user"}]}', '{"other": 1}'])
def test_a_file_of_another_kind_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SavedChatError, match="is no saved chat"):
        load(str(path))


def test_a_missing_name_or_file_is_one_line(tmp_path: Path) -> None:
    for name, part in (("", "as in /save"), (str(tmp_path / "none"), "No such file"), (NOBODY, "no such user")):
        with pytest.raises(SavedChatError, match=part):
            load(name)
    with pytest.raises(SavedChatError, match="no such user"):
        save(NOBODY, MESSAGES)
