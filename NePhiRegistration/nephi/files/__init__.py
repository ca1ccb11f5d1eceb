"""Reading and writing: images, landmarks, transforms, tensors, lists of pairs, result folders."""
