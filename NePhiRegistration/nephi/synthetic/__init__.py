"""Images whose true map is known."""
