"""Generation: prompts to images, and all that prepares it."""
