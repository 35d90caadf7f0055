"""Text to token ids and back, in whole and as a stream."""
