"""Writers of token shards, from text, tables and task libraries."""
