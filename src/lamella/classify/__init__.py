"""``Classify``: a bad answer or a broken connection becomes a typed error."""

from lamella.classify.layer import Classify

__all__ = ["Classify"]
