"""Image augmentation of whole batches, on the device where the batch is.

Receives uint8 images, labels and one seed per sample; hands on normalised float32 images and soft
targets. Before mixing, a sample's pixels depend on its image and its seed alone.
"""
