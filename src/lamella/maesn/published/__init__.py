"""Tables of the published Maesn API: operations, records, and target systems with their limits.

The profile, the sandbox and the documentation are built from these tables. Sources: the public API reference (version
0.6.1, with the changes of version 0.8.21 of 2026-09-22) and the public guides.
"""

__all__: list[str] = []
