"""The bodies of requests and answers: sending one again, reading one early."""

__all__: list[str] = []
