"""The methods, one per file. Each is a frozen dataclass that is a ``Step``."""
