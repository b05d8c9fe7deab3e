"""All that knows pixels: decoding, augmentation, views and generated images."""
