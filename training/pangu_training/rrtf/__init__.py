"""Training on ranked pairs: the loss, the trainer, a run's folder, the checkpoint that comes out."""
