"""Loading, building and saving models and tokenizers."""
