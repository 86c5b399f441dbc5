"""One's own images: train on a folder, look, apply to new images, export."""
