"""How bright a colour is, as everything here counts it."""

LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue count (ITU-R BT.601)."""
