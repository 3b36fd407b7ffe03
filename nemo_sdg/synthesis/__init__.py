"""What to ask for: prompts by kind, and the words of a revision."""
