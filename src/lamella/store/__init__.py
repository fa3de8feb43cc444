"""The shared state store: what calls learn about an account or an origin, for all calls."""

from lamella.store.memory import MemoryStore
from lamella.store.protocol import Store

__all__ = ["MemoryStore", "Store"]
