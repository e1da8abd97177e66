"""What was asked for: every setting, its default and its rules. Without torch."""
