"""Models that predict registrations, their data and their training."""
