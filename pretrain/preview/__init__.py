"""A picture of what the model is given: images after augmentation and mixing, labels, weights."""
