"""What a running gateway is doing."""
