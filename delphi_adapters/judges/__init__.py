"""A judge's ratings of what steered models write: exclusivity scores and rubrics (B.5)."""
