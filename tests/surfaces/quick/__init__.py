"""Requests whose head comes again: each is served as if it had been parsed anew."""
