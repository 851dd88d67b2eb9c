"""`/v1/realtime`: OpenAI's realtime API, as far as transcription goes, in the names of its general release.

endpoint    the WebSocket          config     what a session is set to
session     its events             secrets    ephemeral keys for browsers, and their route
events      their shapes           growing    partials that change, as text that only grows
"""
