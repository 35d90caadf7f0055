"""Run untrusted work in child processes with limits on memory and time: grammars, templates, files, long texts."""
