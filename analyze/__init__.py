"""Command lines of the analyses: parse, call the library, write files."""
