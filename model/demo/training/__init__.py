"""Training of the bundled checkpoint: corpus, tokenizer, network, training loop, evaluation. Not part of the wheel."""
