"""What all figures share: style, marks, numbers as words. Beside the figures of the analyses the only room that imports matplotlib."""
