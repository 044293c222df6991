"""What all command lines share: arguments, interrupts, how they begin and end."""
