"""Find added tokens in a text, as the package `tokenizers` does, with the flags that files give them."""

import os.path
import re
import unicodedata
from collections.abc import Iterable, Iterator

from server.tokenizer.config_files import AddedToken

# Unicode's White_Space. Python's own notion has four control characters more.
WHITE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
_WORD_CATEGORIES = ("L", "M", "Nd", "Nl", "Pc")
# Alphabetic although they are symbols: letters in circles and squares; and two that join letters.
_OTHER_WORD_CHARACTERS = frozenset(
    map(chr, (0x200C, 0x200D, *range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A), *range(0x1F150, 0x1F16A)))
).union(map(chr, range(0x1F170, 0x1F18A)))


class AddedMatcher:
    """Finds the longest of some tokens' texts at a position; never changed once built."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        """`tokens`: the last one counts where several have the same text."""
        self._tokens = {token.text: token for token in tokens if token.text}
        self.pattern = any_of_pattern(self._tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield each part of the text with the id of the token behind it; at last the rest, with None.

        Characters that a token strips are in no part.
        """
        done = white_end = 0  # the latter: end of the white space that was scanned last
        for match in self.pattern.finditer(text):
            token = self._tokens[match.group()]
            start, end = match.span()
            if token.is_word and _is_inside_word(text, start, end):
                continue
            while token.strips_left and start > done and text[start - 1] in WHITE:
                start -= 1
            start = max(start, done) if token.strips_left else start
            if token.strips_right:
                white_end = white_end if end <= white_end else _end_of_white(text, end)
                end = white_end
            if start < end:  # else a token in front has taken it as white space
                yield text[done:start], token.id
                done = end
        yield text[done:], None


def _end_of_white(text: str, start: int) -> int:
    end = start
    while end < len(text) and text[end] in WHITE:
        end += 1
    return end


def any_of_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Compile a pattern that matches the longest of `texts` at a position; without texts it never matches."""
    words = {text for text in texts if text}
    return re.compile(_trie_pattern(words) if words else r"(?!)")


def _trie_pattern(words: set[str]) -> str:
    """Write a pattern as a tree of characters: unlike a list of words, its time does not grow with their number.

    {"<s>", "</s>"} gives `<(?:/s>|s>)`.
    """
    by_first: dict[str, list[str]] = {}
    for word in words:
        if word:
            by_first.setdefault(word[0], []).append(word)
    branches = []
    for _, group in sorted(by_first.items()):
        prefix = os.path.commonprefix(group)  # noqa: RUF071 (characters are meant, not parts of a path)
        branches.append(re.escape(prefix) + _trie_pattern({word[len(prefix) :] for word in group}))
    if not branches:
        return ""
    tree = branches[0] if len(branches) == 1 and "" not in words else f"(?:{'|'.join(branches)})"
    return tree + "?" if "" in words else tree


def _is_inside_word(text: str, start: int, end: int) -> bool:
    """Return whether the character before or behind a part of the text belongs to a word."""
    return any(map(_is_word_character, text[max(start - 1, 0) : start] + text[end : end + 1]))


def _is_word_character(character: str) -> bool:
    r"""Return whether the character is one of Unicode's \w (UTS 18), which Python's differs from."""
    return unicodedata.category(character).startswith(_WORD_CATEGORIES) or character in _OTHER_WORD_CHARACTERS
