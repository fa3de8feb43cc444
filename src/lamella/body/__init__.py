"""Bodies of requests and responses: sending one again, reading one early."""

__all__: list[str] = []
