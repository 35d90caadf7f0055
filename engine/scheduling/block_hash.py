"""Names for the contents of full KV blocks, so that equal prefixes find each other's blocks.

A key covers everything that K/V of a block depends on: its tokens, all tokens before it, the experts that the request
may use, how many of them a token takes, and the request's salt. It is
a hash *chain* over contents, not a tree of blocks: under a sliding window the first blocks of a prefix are the first to
be reused for something else, while its last W tokens are all that a hit needs.
"""

import hashlib
import struct
from collections.abc import Sequence as SequenceOf

BlockHash = bytes  # 16 bytes


def root_key(
    cache_salt: str, experts_per_token: int | None = None, expert_mask: SequenceOf[SequenceOf[bool]] | None = None
) -> BlockHash:
    """The key in front of the first block. Requests that differ in one of these share nothing."""
    experts = repr((experts_per_token, expert_mask)).encode()
    salt = cache_salt.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(struct.pack("<q", len(experts)) + experts + salt, digest_size=16).digest()


def child_key(parent: BlockHash, token_ids: SequenceOf[int]) -> BlockHash:
    """The key of a full block that holds `token_ids` and follows the block named `parent`."""
    return hashlib.blake2b(parent + struct.pack(f"<{len(token_ids)}q", *token_ids), digest_size=16).digest()
