"""Anthropic's Messages API: its requests, answers, events and errors, to and from chat."""
