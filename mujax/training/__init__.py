"""One run: its numbers, its step, its loop, what it leaves."""
