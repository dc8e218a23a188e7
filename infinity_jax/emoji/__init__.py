"""The embedded emoji: rendered images with exact captions, and a matcher that grades images."""
