"""WebSockets: one connection, many calls, and words in both directions.

    protocol      uvicorn's protocol with our bounds        asr         `/ws/asr`
    switchboard   path → endpoint: who, accepted, drained    llm         `/ws/llm`
    socket        one open connection                        realtime/   `/v1/realtime`
    incoming      what a client says while it is answered    live        a call that listens

`door` hands connections over. Every call goes through the same pipeline as one that came by HTTP.
"""
