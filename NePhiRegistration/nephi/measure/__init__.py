"""How good a registration is, and what it will cost."""
