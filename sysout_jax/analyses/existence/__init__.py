"""What outliers look like: landscapes of h, x_down and W_down, attention as a map."""
