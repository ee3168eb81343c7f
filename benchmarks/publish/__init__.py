"""Everything that the project publishes, made again."""
