"""Hashes that name the contents of full KV blocks, so that requests with equal prefixes share blocks.

A hash covers everything that K and V of a block depend on: the block's tokens, all tokens before it, the experts that
the request may use, the number of experts per token, the request's LoRA adapter, and its salt. With several tenants it
also covers the tenant, so that no tenant learns from a hit what another one has sent.

The hashes form a *chain*, not a tree of blocks: under a sliding window the first blocks of a prefix are the first to be
reused for other contents, while a hit needs only the prefix's last W tokens.
"""

import hashlib
import struct
from collections.abc import Sequence as SequenceOf

BlockHash = bytes  # 16 bytes


def root_hash(
    cache_salt: str,
    experts_per_token: int | None = None,
    expert_mask: SequenceOf[SequenceOf[bool]] | None = None,
    tenant: int | None = None,
    adapter: str = "",
) -> BlockHash:
    """Return the hash in front of the first block. Requests that differ in one of the arguments share no blocks.

    `tenant`: None if all tenants share their blocks. `adapter`: digest of its files; empty: none.
    """
    options = repr((experts_per_token, expert_mask, tenant, adapter)).encode()
    salt = cache_salt.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(struct.pack("<q", len(options)) + options + salt, digest_size=16).digest()


def child_hash(parent: BlockHash, token_ids: SequenceOf[int]) -> BlockHash:
    """Return the hash of a full block that holds `token_ids` and follows the block with hash `parent`."""
    return hashlib.blake2b(parent + struct.pack(f"<{len(token_ids)}q", *token_ids), digest_size=16).digest()
