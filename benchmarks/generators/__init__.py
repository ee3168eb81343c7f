"""What the codes of generators know."""
