"""What each part costs in time and memory."""
