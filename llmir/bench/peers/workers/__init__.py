"""Scripts that run in a peer's own environment: no module here but `with_llmir` imports llmir."""
