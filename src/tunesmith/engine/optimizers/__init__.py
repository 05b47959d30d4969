"""The torch optimizers that are ours, because no well-kept library has them with a state that can be saved exactly."""
