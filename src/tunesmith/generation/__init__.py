"""Text from a model: batched sampling and streaming."""
