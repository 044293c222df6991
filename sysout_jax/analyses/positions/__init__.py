"""Where outliers are: layers, tokens, channels, matrices, keys and heads."""
