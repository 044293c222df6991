"""Which tokens carry outliers as a text grows, with and without BOS."""
