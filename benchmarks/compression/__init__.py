"""Compression criteria at equal budget, and the bars of the recipe: ``simmim bench``."""
