"""What has been done since the start, in numbers."""
