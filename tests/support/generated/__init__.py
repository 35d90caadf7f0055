"""Random inputs, harmless and hostile: schemas, grammars and chat templates."""
