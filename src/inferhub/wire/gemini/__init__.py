"""Google's Gemini API as a foreign wire format: chat lifted to it, its answers and errors read."""
