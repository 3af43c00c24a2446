"""The report as one page, which needs no network."""
