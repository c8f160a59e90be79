"""CoCa (Contrastive Captioners) from first principles."""

__version__ = "0.1.0"
