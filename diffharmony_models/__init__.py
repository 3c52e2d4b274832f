"""DiffHarmony: latent diffusion harmonization of a pasted foreground. Importing this package loads nothing heavy."""

__version__ = "0.1.0"
