"""Other programs and what they make, as fixtures."""
