"""Pruning: which channels must go together, how they are scored, chosen and masked over time."""
