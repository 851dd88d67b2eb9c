"""Speech recognition in this process: Whisper, through faster-whisper and CTranslate2, and who spoke when.

    backend     options, load, capabilities, run        windows     a recording, cut where nobody speaks
    recording   a recording → segments                  diarize     voices told apart
    engine      the model and its threads               live, …     sound as it comes
    vad         where somebody speaks

The worker's host loads it in a child process. What clients send is decoded by `media`, elsewhere.
"""

from inferhub.backends.whisper.backend import Whisper

BACKEND = Whisper
