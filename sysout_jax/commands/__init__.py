"""What all command lines share: arguments, how they begin and end, what they compiled."""
