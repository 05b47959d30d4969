"""One step of training: packs, attention, losses, the loop and its checkpoints."""
