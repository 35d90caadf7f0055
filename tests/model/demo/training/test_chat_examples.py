"""Generated conversations: the same for equal seeds, and their answers are right."""

import json
import re

from model.demo.training.chat_examples import DOMAIN_ANSWERS, ChatExamples, render
from model.demo.training.corpus import Domain

LINES = ["It was the best of times, and the worst of times as well.", "She had not thought about him since the winter."]
DOMAINS = [Domain(name, ["\n".join(LINES)], []) for name in DOMAIN_ANSWERS]


def test_equal_seeds_give_equal_conversations() -> None:
    first, second = (ChatExamples(DOMAINS, seed=4) for _ in range(2))
    assert [first.conversation() for _ in range(50)] == [second.conversation() for _ in range(50)]


def test_answers_are_right() -> None:
    examples = ChatExamples(DOMAINS, seed=0)
    turns = [turn for _ in range(400) for turn in examples.conversation()]
    checked = 0
    for question, answer in turns:
        question = question.removeprefix("You are a helpful assistant.\n\n")
        if match := re.match(r"(?:What is|Add) (\d+) (?:\+|and) (\d+)", question):
            assert answer == str(int(match[1]) + int(match[2]))
        elif match := re.match(r"Count from (\d+) to (\d+)", question):
            assert answer.split() == [str(i) for i in range(int(match[1]), int(match[2]) + 1)]
        elif match := re.match(r"Reverse the words: (.*)", question):
            assert answer.split() == match[1].split()[::-1]
        elif match := re.match(r".*JSON: (?:name )?(\w+)(?: is|, age) (\d+)", question):
            assert json.loads(answer) == {"name": match[1], "age": int(match[2])}
        else:
            continue
        checked += 1
    assert checked > 100


def test_turns_are_rendered_in_the_format_of_the_chat_template() -> None:
    assert render([("a", "b"), ("c", "d")]) == ["[INST] a [/INST] b", "[INST] c [/INST] d"]
