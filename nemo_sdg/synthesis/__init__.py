"""What to ask: prompts of many kinds for a domain brief, the checks that come with them, and the words of a revision.
Asks nobody itself."""
