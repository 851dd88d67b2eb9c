"""Any GGUF language model in this process, through llama.cpp's server engine (xllamacpp).

    backend    options, load, capabilities, run          chat, completion   our requests ⇄ the engine's
    engine     the engine itself and its errors          tools, schemas     what it may write, constrained
    slots      who runs next, cancel                     gguf               the file's header
    counting   how long a prompt is

The worker's host loads it in a child process; it opens no port and fetches nothing.
"""

from inferhub.backends.llamacpp.backend import LlamaCpp

BACKEND = LlamaCpp
