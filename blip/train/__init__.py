"""Training: from a configuration and data to a model on disk, through any number of kills."""
