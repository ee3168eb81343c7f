"""How well and how fast images are inverted, and what a run survives."""
