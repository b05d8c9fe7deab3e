"""Everything that handles pixels: decoding, augmentation, views and generated images."""
