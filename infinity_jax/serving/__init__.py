"""An HTTP server with OpenAI's images API, and the page that uses it."""
