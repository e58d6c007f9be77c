"""The OpenAI-compatible server: HTTP in front of an engine.  `app.create_app` makes it."""
