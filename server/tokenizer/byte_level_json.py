"""Parts of a tokenizer.json of a byte-level vocabulary, for files that store the vocabulary in another format."""

from server.tokenizer.config_files import Json


def word_steps(pattern: str | None) -> Json:
    """Return the pre-tokenizer. `pattern`: of a word; None: GPT-2's, which the package has."""
    uses_gpt_2 = pattern is None
    to_bytes: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": uses_gpt_2}
    if uses_gpt_2:
        return to_bytes
    split: Json = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, to_bytes]}


def start_step(start: str) -> Json:
    """Return the post-processor that puts a control token in front of a text."""
    special: Json = {"SpecialToken": {"id": start}}
    return {"type": "TemplateProcessing", "single": [special, {"Sequence": {"id": "A"}}]}
