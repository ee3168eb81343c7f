"""Tables and figures drawn from the result files."""
