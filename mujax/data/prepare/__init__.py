"""Shards of tokens from text, tables and task libraries."""
