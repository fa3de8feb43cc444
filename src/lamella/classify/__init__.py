"""``Classify``: turn a bad response or a transport failure into a typed error."""

from lamella.classify.layer import Classify

__all__ = ["Classify"]
