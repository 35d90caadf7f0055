"""Drafts for tests: grammars, runs with and without drafts, and a drafter that guesses."""
