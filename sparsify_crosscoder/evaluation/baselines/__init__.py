"""What the simplest methods see of two models, beside whatever a crosscoder finds."""
