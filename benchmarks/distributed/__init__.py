"""What ranks send and hold: a model on paper up to any size, checked against processes that were counted."""
