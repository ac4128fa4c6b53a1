"""What looks and serves nobody."""
