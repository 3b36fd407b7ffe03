"""What to ask: prompts of many kinds for a domain brief, and the checks that come with them. Asks nobody itself."""
