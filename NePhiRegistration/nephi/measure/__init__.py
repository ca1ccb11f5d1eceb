"""Quality of a registration, and its estimated cost."""
