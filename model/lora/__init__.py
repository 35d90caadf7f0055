"""LoRA adapters (Hu et al. 2021): their low-rank terms, the rows of a batch that have them, and their files."""
