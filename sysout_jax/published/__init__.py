"""Published numbers of models: as data with their sources, under the names that reports measure, and held against reports."""
