"""Convert text to token ids and back, complete or as a stream."""
