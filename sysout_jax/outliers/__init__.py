"""What outliers are, where they are, and how they live: definitions, statistics, lifecycle."""
