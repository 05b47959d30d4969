"""Messages to tokens: the tokenizer's own chat template, named ones for base models, and which tokens are trained."""
