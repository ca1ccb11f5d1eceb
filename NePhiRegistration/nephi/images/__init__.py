"""The images that are compared: masks, windows, the alignment, features and the pair of images."""
