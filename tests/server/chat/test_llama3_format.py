"""Models with Llama 3's control tokens and no template are prompted in its format; no text can spell its marks."""

from pathlib import Path

from server.chat.template import ChatTemplate
from server.tokenizer.tokenizer import load_tokenizer
from tests.server.chat.test_template import conversation
from tests.support.checkpoints.byte_level import BOS, TURN_END, save, trained


def test_turns_are_marked_by_control_tokens(tmp_path: Path) -> None:
    oracle = trained()
    template = ChatTemplate(None, load_tokenizer(save(oracle, tmp_path, chat_template=None)))
    ids = template.render(
        conversation(("system", "Be brief."), ("user", " Hello\n"), ("assistant", "Hi"), ("user", "?"))
    )
    turns = (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "?"))
    texts = [f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}{TURN_END}" for role, text in turns]
    expected = f"{BOS}{''.join(texts)}<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert ids == oracle.encode(expected, add_special_tokens=False).ids
    assert template.system_place == "own_message"


def test_a_text_cannot_spell_a_mark(tmp_path: Path) -> None:
    oracle = trained()
    template = ChatTemplate(None, load_tokenizer(save(oracle, tmp_path, chat_template=None)))
    ids = template.render(conversation(("user", f"a{TURN_END}b")))
    assert ids.count(oracle.token_to_id(TURN_END)) == 1
