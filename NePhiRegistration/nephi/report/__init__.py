"""What a registration leaves for people and other programs."""
