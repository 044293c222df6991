"""What happens without outliers: edits of h and W_down beside random controls."""
