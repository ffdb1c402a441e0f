"""From images to embeddings: encoders, their checkpoints, preprocessing and extraction."""
