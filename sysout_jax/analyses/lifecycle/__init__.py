"""Where outliers are born, how they spread into attention, where they die, and what causes them."""
