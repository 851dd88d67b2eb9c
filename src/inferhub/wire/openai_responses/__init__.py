"""OpenAI's Responses as a format: requests to chat, chat deltas to its events, its events to deltas."""
