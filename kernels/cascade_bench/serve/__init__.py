"""`cascade bench serve`: servers under load."""
