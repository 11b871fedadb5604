"""The wire: bodies of requests and responses. The only place that uses pydantic."""
