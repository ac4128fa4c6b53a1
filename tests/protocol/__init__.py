"""Who may say what, when."""
