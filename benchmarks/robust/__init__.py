"""Where fresh samples with a teacher's labels pay, and where they do not."""
