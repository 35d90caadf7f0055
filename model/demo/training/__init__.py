"""How the bundled checkpoint was made: corpus, tokenizer, network, training loop, evaluation. Not part of serving."""
