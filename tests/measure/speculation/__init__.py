"""Drafts: their speed here and elsewhere, and the bits of the answers."""
