"""Two finished lifecycles side by side."""
