"""Serving cascades: a server that speaks the OpenAI Images API."""
