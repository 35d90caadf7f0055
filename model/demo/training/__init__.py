"""How the bundled checkpoint was made: corpus, tokenizer, network, training loop, evaluation. Serving never imports this."""
