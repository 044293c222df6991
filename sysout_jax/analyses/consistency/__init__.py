"""Whether weight, activation and attention outliers coincide."""
