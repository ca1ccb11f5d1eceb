"""What is compared: masks, windows, the alignment, features and the pair of images."""
