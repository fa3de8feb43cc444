"""The shared state store: what calls learn about an account or an origin."""

from lamella.store.memory import MemoryStore
from lamella.store.network import NetworkStore
from lamella.store.postgres import PostgresStore
from lamella.store.protocol import Store
from lamella.store.redis import RedisStore

__all__ = ["MemoryStore", "NetworkStore", "PostgresStore", "RedisStore", "Store"]
