"""What analyses write and print: one module per analysis, one that writes files, one that makes the page, and terminal summaries."""
