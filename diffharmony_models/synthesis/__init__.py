"""Training data out of photos: looks, colour transfers and composites. Knows no network."""
