"""The result folder: transforms, images, report and pictures."""
