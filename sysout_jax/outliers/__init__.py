"""What outliers are: every rule in one place, and classes of the tokens that hold them."""
