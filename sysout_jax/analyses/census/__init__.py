"""`analyze.census`: the strongest writers of a model, and what the model is without each of them."""
