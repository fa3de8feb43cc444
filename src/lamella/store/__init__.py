"""The shared state store: what calls learn about an account or an origin."""

__all__: list[str] = []
