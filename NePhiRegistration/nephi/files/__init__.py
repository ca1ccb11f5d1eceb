"""What is read and written: images, landmarks, transforms, tensors, lists of pairs, the folder of a result."""
