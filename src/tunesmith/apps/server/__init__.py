"""The HTTP server: routes, streams and errors of OpenAI's API; what they do lies in ``tunesmith.run.serving``."""
