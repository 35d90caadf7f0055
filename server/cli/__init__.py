"""Commands for a person at a terminal: a chat, a completion, and what is wrong with an installation."""
