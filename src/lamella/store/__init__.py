"""Where layers keep what calls learn for one another."""

from lamella.store.memory import MemoryStore
from lamella.store.protocol import Store

__all__ = ["MemoryStore", "Store"]
